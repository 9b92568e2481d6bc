"""Pretrained text encoders of Hugging Face: frozen, fine-tuned, or with low-rank adapters."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.extras import imported
from metarun.models.pretrained import Embed, Embedder, embed_once, in_package, pretrained_protocol, select_trained
from metarun.models.tokens import pad
from metarun.types import Fraction, PathOrName, Positive, Rate, Tune

Pooling = Literal["mean", "cls", "max"]


class Encoder(nn.Module):
    """Pooled token states of a pretrained transformer, one vector per text.

    Maps embeddings [N, D] to features [N, D] if the encoder is frozen, else token ids + 1 [N, L], 0 for padding, to
    features [N, D]. Weights are read from safetensors only, and no code of a model is run. The features are
    ``scale * M e`` for the embedding e and an optional linear map M that starts as the identity.

    With ``tune=frozen`` each text is embedded once without dropout. Embeddings are cached under a hash of the model's
    files, the texts and the pooling. To adapt low-rank updates to each task on top of meta-learned weights, use
    ``algorithm=lowrank`` with ``tune=all``.

    Args:
        name: Folder with ``config.json``, safetensors and tokenizer, ``package:folder`` for a folder inside an
            installed Python package, or ``name`` or ``name@revision`` of a model on the Hugging Face hub.
        pooling: ``mean`` or ``max`` over all tokens including the special ones, as in Sentence-BERT (Reimers & Gurevych
            2019, arXiv:1908.10084, section 3), or ``cls`` for the first token.
        normalize: If true, scale embeddings to length 1.
        tune: Weights to train, ``frozen``, ``norm``, ``lora`` or ``all``; see :data:`~metarun.types.Tune`.
        rank: Rank of the low-rank updates.
        max_tokens: Number of tokens after which a text is cut.
        scale: Length of the features, which is the sharpness of a softmax over distances.
        metric: If true, learn the linear map M.
        dropout: Dropout rate of e before the learned part of M.
        pretrained_on: Data that the weights were trained on and their overlap with the test data, for the protocol.

    Raises:
        UserError: The model is not found or cannot be read, or transformers is not installed.
    """

    modalities: ClassVar[tuple[str, ...]] = ("text",)
    role: ClassVar[str] = "features"

    def __init__(
        self,
        *,
        name: PathOrName,
        pooling: Pooling,
        normalize: bool,
        tune: Tune,
        rank: Positive,
        max_tokens: Positive,
        scale: Rate,
        metric: bool,
        dropout: Fraction,
        pretrained_on: str | None = None,
    ) -> None:
        super().__init__()
        require(dropout < 1, "model.dropout=1: must be less than 1")
        self.folder, self.name = locate(name), name
        self.pooling, self.normalize, self.max_tokens, self.scale = pooling, normalize, max_tokens, scale
        self.tokenizer = tokenizer_of(self.folder)
        self.batchable = tune == "frozen"  # code of other libraries may branch on values, which vmap does not support
        self.net: nn.Module | None = None
        if tune != "frozen":
            self.net = load(self.folder).to(torch.get_default_dtype())
            select_trained(self.net, tune, rank)
        self.width = config_of(self.folder).hidden_size
        self.metric = nn.Linear(self.width, self.width, bias=False) if metric else None
        if self.metric is not None:
            nn.init.zeros_(self.metric.weight)
        self.dropout = nn.Dropout(dropout)
        self.tune, self.pretrained_on = tune, pretrained_on
        self.is_frozen = tune == "frozen"

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare results of the encoder with others."""
        return pretrained_protocol(self.name, self.tune, self.name, self.pretrained_on)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings [N, D] if the encoder is frozen, else token ids + 1, int32 [N, L]."""
        if self.net is not None:
            return self.tokens(texts)
        key = {**self._encoding(), "texts": hashlib.sha256("\0".join(texts).encode()).hexdigest()}

        def start() -> tuple[Tensor, Embed]:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            net, ids = load(self.folder).to(device).eval(), self.tokens(texts)
            by_length = (ids > 0).sum(1).argsort(stable=True)
            return by_length, lambda rows: pool_states(net, ids[rows].to(device), self.pooling)

        embedded = embed_once(self.name, "texts", (len(texts), self.width), key, start)
        return nn.functional.normalize(embedded, dim=1) if self.normalize else embedded

    def stamp(self) -> str:
        """Return a hash of everything but the texts that embeddings depend on."""
        encoding = {**self._encoding(), "normalize": self.normalize}
        return hashlib.sha256(json.dumps(encoding, sort_keys=True).encode()).hexdigest()

    def _encoding(self) -> dict[str, Any]:
        return {"files": stamp(self.folder), "pooling": self.pooling, "max_tokens": self.max_tokens}

    def embedder(self) -> Embedder | None:
        """Return the network if it is frozen: token ids + 1 [N, L], 0 for padding, to embeddings [N, F]."""
        return self._loaded if self.is_frozen else None

    @functools.cached_property
    def _loaded(self) -> Embedder:  # not registered as a module, so that its weights are not the model's
        def embed(net: nn.Module, ids: Tensor) -> Tensor:
            found = pool_states(net, ids, self.pooling).to(torch.get_default_dtype())
            return nn.functional.normalize(found, dim=1) if self.normalize else found

        return Embedder(load(self.folder).eval().requires_grad_(False), embed)

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return token ids + 1 of texts, int32 [N, L], padded with 0."""
        found = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"] if texts else []
        return pad([[1 + i for i in ids] for ids in found])

    def example(self) -> Tensor:
        """Return an example input with two texts."""
        if self.net is None:
            weight = torch.empty(0) if self.metric is None else self.metric.weight
            return weight.new_ones(2, self.width)
        return torch.ones(2, 1, dtype=torch.int32, device=next(self.net.parameters()).device)

    def forward(self, x: Tensor) -> Tensor:
        if self.net is not None:
            x = pool_states(self.net, x, self.pooling)
            x = nn.functional.normalize(x, dim=1) if self.normalize else x
        if self.metric is not None:
            x = x + self.metric(self.dropout(x))
        return self.scale * x


def pool_states(net: nn.Module, ids: Tensor, pooling: Pooling) -> Tensor:
    """Return the pooled states [N, D] of tokens given as ids + 1 [N, L], with 0 for padding."""
    here = ids > 0
    if not torch.compiler.is_exporting():
        try:  # drop columns that are padding in all texts
            used = max(int(here.any(0).sum()), 1)
        except RuntimeError:  # values cannot be read on the meta device
            used = ids.shape[1]
        ids, here = ids[:, :used], here[:, :used]
    ids = ids.long()
    blank = getattr(net.config, "pad_token_id", None) or 0  # some models compute positions from it
    states = net(input_ids=torch.where(here, ids - 1, blank), attention_mask=here.long()).last_hidden_state
    if pooling == "cls":
        return states[:, 0]
    if pooling == "max":
        return states.masked_fill(~here[..., None], torch.finfo(states.dtype).min).amax(1)
    weights = here.to(states.dtype)
    return torch.einsum("nl,nld->nd", weights, states) / weights.sum(1, keepdim=True).clamp(min=1)


def transformers() -> Any:
    """Import transformers and silence its messages.

    Raises:
        UserError: It is not installed.
    """
    transformers = imported("transformers", "model=encoder or model=vision_encoder", "nlp")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def locate(name: str) -> Path:
    """Return the folder of a model, which is downloaded if it is on the Hugging Face hub.

    Raises:
        UserError: There is no such model.
    """
    transformers()
    if (folder := in_package("model.name", name)) is not None:
        require((folder / "config.json").is_file(), f"model.name={name}: no config.json in {folder}")
        return folder
    folder = Path(name).expanduser()
    if folder.exists() or name.startswith(("/", ".", "~")):
        require((folder / "config.json").is_file(), f"model.name={name}: must be a folder with a config.json")
        return folder
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"model.name={name}: no such folder, and not available from the Hugging Face hub ({reason}); "
            "give a folder, package:folder, or the name of a model there"
        ) from None


def config_of(folder: Path) -> Any:
    """Read the configuration of a model."""
    return _read(folder, transformers().AutoConfig)


def tokenizer_of(folder: Path) -> Any:
    """Read the tokenizer of a model."""
    return _read(folder, transformers().AutoTokenizer)


def load(folder: Path) -> nn.Module:
    """Load the encoder in float32 without a pooler that has weights. The random state does not change.

    Raises:
        UserError: The folder cannot be read or has no weights for some tensors.
    """
    with torch.random.fork_rng(devices=[]):
        net, info = _read(
            folder,
            transformers().AutoModel,
            use_safetensors=True,
            output_loading_info=True,
            # eager attention has second derivatives, fused attention has none
            attn_implementation="eager",
        )
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    require(not missing, f"model.name: {folder} has no weights for {len(missing)} tensors, {missing[:1]} the first")
    if net.config.is_encoder_decoder:
        net = net.get_encoder()
    pooler = getattr(net, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        net.pooler = None
    return net.float()


def _read(folder: Path, kind: Any, **options: Any) -> Any:
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers checks little of its files
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"model.name: {folder} cannot be read as a model of transformers ({reason})") from None


def stamp(folder: Path) -> str:
    """Return a hash of the files that determine the embeddings of a model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".txt", ".model", ".safetensors")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    logging.getLogger(__name__).debug("%s has the stamp %s", folder, digest.hexdigest())
    return digest.hexdigest()
