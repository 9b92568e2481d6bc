"""Pretrained Hugging Face encoders of texts: frozen, fine-tuned, or with low-rank adapters."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.models.lowrank import add, fix
from metarun.models.tokens import pad
from metarun.tasks.files import Arrays, Progress, cached
from metarun.types import Fraction, PathOrName, Positive, Rate

Pooling = Literal["mean", "cls", "max"]
EMBEDDED_AT_ONCE = 64
"""Texts, of about one length; more are no faster on a few cores."""


class Encoder(nn.Module):
    """A pretrained transformer's states of a text's tokens, pooled: one vector a text.

    ``name`` is a folder (``config.json``, safetensors, tokenizer), ``package:folder`` for one inside an installed
    Python package, or a model of the Hugging Face hub, ``name@revision`` for a certain one. Weights are read from
    safetensors alone, and no code that comes with a model is run. ``pooling`` is over the tokens of the text, the
    special ones included as in Sentence-BERT (Reimers & Gurevych 2019, arXiv:1908.10084, section 3), or takes the
    first; ``normalize`` scales the result to length 1. Texts are cut after ``max_tokens``. What is learned of the
    encoder (``tune``):

    ``frozen``  nothing: each text is embedded once, without dropout, and the embeddings are kept in the cache under a
    hash of the model's files, the texts and how they are read, so that an episode is a gather;
    ``all``  everything;
    ``lora``  only low-rank additions of ``rank`` to its linear layers (:class:`metarun.models.lowrank.Added`; Hu et
    al. 2022, arXiv:2106.09685), which start at 0; they alone are in checkpoints. To adapt additions to each task on
    top of meta-learned weights, take ``algorithm=lowrank`` with ``tune=all``.

    The embedding e is multiplied by ``scale``, the sharpness of a softmax over distances. With ``metric`` a learned
    linear map M, which starts as the identity, is put on top: scale M e, where ``dropout`` of e is on M's learned part
    alone.

    ``frozen``: embeddings [N, D] -> [N, D]. Else ids int [N, L] (token + 1; 0: none) -> [N, D].
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    role: ClassVar[str] = "features"

    def __init__(
        self,
        *,
        name: PathOrName,
        pooling: Pooling,
        normalize: bool,
        tune: Literal["frozen", "all", "lora"],
        rank: Positive,
        max_tokens: Positive,
        scale: Rate,
        metric: bool,
        dropout: Fraction,
    ) -> None:
        super().__init__()
        require(dropout < 1, "model.dropout=1 leaves nothing; give less than 1")
        self.folder, self.name = locate(name), name
        self.pooling, self.normalize, self.max_tokens, self.scale = pooling, normalize, max_tokens, scale
        self.tokenizer = tokenizer_of(self.folder)
        self.batchable = tune == "frozen"  # code that is not ours may branch on values, which vmap cannot
        self.net: nn.Module | None = None
        if tune != "frozen":
            self.net = load(self.folder).to(torch.get_default_dtype())
            if tune == "lora":
                fix(self.net, persistent=False)
                add(self.net, rank)
        self.width = config_of(self.folder).hidden_size
        self.metric = nn.Linear(self.width, self.width, bias=False) if metric else None
        if self.metric is not None:
            nn.init.zeros_(self.metric.weight)
        self.dropout = nn.Dropout(dropout)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [N, D] where nothing is learned of the encoder, else token ids + 1, int32 [N, L]."""
        if self.net is not None:
            return self.tokens(texts)
        key = {
            "files": stamp(self.folder),
            "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
        }
        embedded = torch.from_numpy(cached("embeddings", key, lambda: self._embedded(texts))["embeddings"])
        embedded = embedded.to(torch.get_default_dtype())
        return nn.functional.normalize(embedded, dim=1) if self.normalize else embedded

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Token ids + 1, int32 [N, L], 0 where there are no more."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"] if texts else []
        return pad([[1 + i for i in ids] for ids in found])

    def _embedded(self, texts: Sequence[str]) -> Arrays:
        """All texts through the frozen encoder, those of about one length together."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net, ids = load(self.folder).to(device).eval(), self.tokens(texts)
        made = torch.empty(len(texts), self.width)
        lengths = (ids > 0).sum(1)
        with Progress(f"{self.name}: texts embedded", len(texts), 1, "texts") as progress, torch.no_grad():
            for rows in lengths.argsort(stable=True).split(EMBEDDED_AT_ONCE):
                made[rows] = pooled(net, ids[rows].to(device), self.pooling).cpu()
                progress.update(len(rows))
        return {"embeddings": made.numpy()}

    def example(self) -> Tensor:
        if self.net is None:
            weight = torch.empty(0) if self.metric is None else self.metric.weight
            return weight.new_ones(2, self.width)
        return torch.ones(2, 1, dtype=torch.int32, device=next(self.net.parameters()).device)

    def forward(self, x: Tensor) -> Tensor:
        if self.net is not None:
            x = pooled(self.net, x, self.pooling)
            x = nn.functional.normalize(x, dim=1) if self.normalize else x
        if self.metric is not None:
            x = x + self.metric(self.dropout(x))
        return self.scale * x


def pooled(net: nn.Module, ids: Tensor, pooling: Pooling) -> Tensor:
    """Pooled states [N, D] of the tokens ``ids - 1`` [N, L], where 0 is none."""
    here = ids > 0
    try:  # columns that no text uses are left out
        used = max(int(here.any(0).sum()), 1)
    except RuntimeError:  # values cannot be read on the meta device
        used = ids.shape[1]
    ids, here = ids[:, :used].long(), here[:, :used]
    blank = getattr(net.config, "pad_token_id", None) or 0  # some read positions off it
    states = net(input_ids=torch.where(here, ids - 1, blank), attention_mask=here.long()).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(~here[..., None], torch.finfo(states.dtype).min).amax(1)
    weights = here.to(states.dtype)
    return torch.einsum("nl,nld->nd", weights, states) / weights.sum(1, keepdim=True).clamp(min=1)


def transformers() -> Any:
    """The library, which is an extra; quiet."""
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"model=encoder needs transformers ({error}): pip install 'metarun[nlp]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def locate(name: str) -> Path:
    """The folder of the model ``name``, downloaded where it is one of the hub."""
    transformers()
    package, colon, inside = name.partition(":")
    if colon:
        found = importlib.util.find_spec(package) if package.isidentifier() else None
        require(
            found is not None and bool(found.submodule_search_locations),
            f"model.name={name}: the Python package '{package}' is not installed",
        )
        assert found is not None
        assert found.submodule_search_locations
        folder = Path(found.submodule_search_locations[0]) / inside
        require((folder / "config.json").is_file(), f"model.name={name}: no config.json in {folder}")
        return folder
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith(("/", ".", "~")):
        require((folder / "config.json").is_file(), f"model.name={name}: no folder with a config.json")
        return folder
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"model.name={name}: no such folder, and not to be had from the Hugging Face hub ({reason}); "
            "give a folder, package:folder, or a model's name there"
        ) from None


def config_of(folder: Path) -> Any:
    return _read(folder, transformers().AutoConfig)


def tokenizer_of(folder: Path) -> Any:
    return _read(folder, transformers().AutoTokenizer)


def load(folder: Path) -> nn.Module:
    """The encoder, float32, without the pooler on top of its first token; no random number is drawn."""
    with torch.random.fork_rng(devices=[]):
        net, info = _read(
            folder,
            transformers().AutoModel,
            use_safetensors=True,
            output_loading_info=True,
            # Its operations have second derivatives, which fused attention has not.
            attn_implementation="eager",
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    require(not missing, f"model.name: {folder} has no weights for {len(missing)} tensors, {missing[:1]} the first")
    if net.config.is_encoder_decoder:
        net = net.get_encoder()
    if isinstance(getattr(net, "pooler", None), nn.Module):
        net.pooler = None
    return net.float()


def _read(folder: Path, kind: Any, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # the library checks little of what its files say
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"model.name: {folder} cannot be read as a model of transformers ({reason})") from None


def stamp(folder: Path) -> str:
    """A hash of the files that decide what a model makes of a text."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model", ".safetensors")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    logging.getLogger(__name__).debug("%s has the stamp %s", folder, digest.hexdigest())
    return digest.hexdigest()
