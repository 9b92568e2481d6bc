"""Models of timm (PyTorch Image Models) as embeddings of images."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import RunFailed, UserError, nearest, nearest_path, require
from metarun.models.cards import Card, read_card
from metarun.models.conv4 import as_float
from metarun.models.pretrained import (
    Embed,
    Embedder,
    embed_once,
    fingerprint,
    in_package,
    pretrained_protocol,
    select_trained,
)
from metarun.tasks.episode import Spec
from metarun.types import PathOrName, Positive, Rate, Tune

log = logging.getLogger("metarun")
MIN_VERSION = (1, 0, 26)
"""First version of timm that loads all weight files without running code from them."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of the file of weights in a folder."""
Interpolation = Literal["bilinear", "bicubic"]


class Timm(nn.Module):
    """Pooled features of a timm model without its classifier.

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, features]; with ``tune=frozen`` maps the
    embeddings of :meth:`encode` to themselves. Inputs are resized and then standardised as the card of the weights
    says: ``config.json`` beside a file of weights, else timm's own card of the model, unless keys say otherwise. The
    card's crop is not applied. The batch norm is torch's own, so ``algorithm.norm=support`` does not work unless the
    encoder is frozen.

    Args:
        spec: Shapes of the task.
        name: Name of a timm model, such as ``resnet18.a1_in1k`` or ``vit_tiny_patch16_224``, also ``hf-hub:...`` and
            ``local-dir:...``.
        pretrained: If true, use the published weights, from the cache of the Hugging Face hub or by download.
        weights: File of weights to load instead, a folder with weights and their ``config.json``, or ``package:path``
            for a path inside an installed Python package.
        in_order: If true, the tensors of ``weights`` are assigned in order, whatever their names. It is for weights of
            another implementation of the same network. Numbers and shapes of the tensors must be equal.
        resize: Height and width in pixels to which images are resized on the device, for weights that were trained at
            another size; ``card`` for the size in the card. With ``None``, models for a fixed size (vision transformers
            among them) are built for that of the images.
        interpolation: Interpolation of resizing, with antialiasing; ``None`` for the card's.
        mean: Mean of each colour in 0..1 that is subtracted; ``card`` for the card's.
        std: Deviation of each colour by which images are divided; ``card`` for the card's.
        tune: Weights to train, ``frozen``, ``norm``, ``lora`` or ``all``; see :data:`~metarun.types.Tune`.
        rank: Rank of the low-rank updates.
        normalize: If true, scale features to length 1.
        pretrained_on: Data that the weights were trained on and their overlap with the test classes, for the protocol.

    Raises:
        UserError: timm is missing or too old, has no such model, or cannot build it for these images, or the weights
            or their card cannot be read.
        RunFailed: The weights cannot be downloaded.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"
    mean: Tensor
    std: Tensor

    # Defaults are those of runs made before the keys existed.
    def __init__(
        self,
        spec: Spec,
        *,
        name: str,
        pretrained: bool,
        weights: PathOrName | None,
        resize: Positive | Literal["card"] | None,
        in_order: bool | None = None,
        interpolation: Interpolation | None = "bilinear",
        mean: Sequence[float] | Literal["card"] | None = None,
        std: Sequence[Rate] | Literal["card"] | None = None,
        tune: Tune | None = None,
        rank: Positive | None = None,
        normalize: bool | None = None,
        pretrained_on: str | None = None,
    ) -> None:
        super().__init__()
        tune, rank = tune or "all", rank or 8
        mean, std = (None if value == "card" else value for value in (mean, std))
        timm = import_timm()
        plain = name.split(":", 1)[-1].split(".")[0] if ":" not in name else None
        if plain is not None and not timm.is_model(plain):
            raise UserError(f"model.name={name}: timm has no such model{nearest(plain, timm.list_models())}")
        require(
            not (pretrained and weights),
            "model.pretrained=true and model.weights exclude each other: give only one of them",
        )
        require(
            not in_order or weights is not None,
            "model.in_order=true assigns the tensors of a file in order: give the file as model.weights",
        )
        where, file = f"model.weights={weights}", None if weights is None else weights_file(weights)
        folder = name.partition("local-dir:")[2]
        own = read_card(file.parent, where) if file else None
        if folder:
            own = read_card(Path(folder).expanduser(), f"model.name={name}")
        if own is not None and own.architecture and plain is not None and own.architecture != plain:
            raise UserError(f"{where}: its card is of {own.architecture}, not of model.name={name}")
        known = timm.models.get_pretrained_cfg(name) if plain is not None else None
        card = own or Card.of(vars(known) if known else {})
        channels, height, width = spec.input_shape
        # Weights that are assigned in order read colours; a grey image is then repeated in each.
        self.colours = 3 if in_order and channels == 1 else channels
        if resize == "card":
            require(card.size is not None, f"model.resize=card: there is no card of {name}; give a number of pixels")
        self.size: tuple[int, int] = (height, width)
        if resize is not None:
            self.size = (resize, resize) if resize != "card" else card.size or self.size
        given: dict[str, Any] = {"num_classes": 0, "in_chans": self.colours, "pretrained": pretrained}
        if getattr(known, "fixed_input_size", False):
            given["img_size"] = self.size
        if file is not None and not in_order:
            given["checkpoint_path"] = str(file)
        try:
            net: nn.Module = timm.create_model(name, **given)
        except (OSError, ConnectionError) as error:
            raise RunFailed(f"model.name={name}: its weights could not be downloaded ({_short(error)})") from error
        except Exception as error:  # of many kinds in timm, torch and safetensors
            raise UserError(
                f"model.name={name}: timm cannot build it for images of {channels} channels and "
                f"{self.size[0]}x{self.size[1]} pixels ({_short(error)})"
            ) from error
        if in_order and file is not None:
            load_in_order(net, file, where)
        card = own or Card.of(getattr(net, "pretrained_cfg", None) or {})
        if file is not None and own is None and (mean is None or std is None):
            log.warning(
                "model.weights=%s has no card: images are standardised as timm's card of %s says; "
                "model.mean and model.std say otherwise", weights, name
            )  # fmt: skip
        self.interpolation = interpolation or ("bilinear" if card.interpolation == "bilinear" else "bicubic")
        for key, chosen, default in (
            ("mean", mean or card.mean, (0.485, 0.456, 0.406)),
            ("std", std or card.std, (0.229, 0.224, 0.225)),
        ):
            values = torch.tensor(chosen or default, dtype=torch.get_default_dtype())
            values = values if len(values) == self.colours else values.mean().expand(self.colours)
            self.register_buffer(key, values.view(-1, 1, 1).clone(), persistent=False)
        self.name, self.normalize, self.input_shape = name, bool(normalize), spec.input_shape
        self.weights = file.name if file else name if pretrained or folder else None
        self.tune, self.pretrained_on = tune, pretrained_on
        self.is_frozen = tune == "frozen"
        self.net: nn.Module | None = None
        self._frozen: tuple[nn.Module, ...] = ()  # in a tuple, so that its weights are not the model's
        if self.is_frozen:
            self._frozen = (net.eval().requires_grad_(False),)
            with torch.no_grad():
                self.width = self._features(net, torch.zeros(1, channels, height, width)).shape[1]
        else:
            select_trained(net, tune, rank)
            self.net = net

    def protocol(self) -> dict[str, Any]:
        """Return the facts needed to compare results of the encoder with others."""
        return pretrained_protocol(self.name, self.tune, self.weights, self.pretrained_on)

    def encode(self, images: Tensor) -> Tensor:
        """Return embeddings [N, F] of images if the encoder is frozen, else the images.

        Embeddings are cached under a hash of weights, preprocessing and images.

        Args:
            images: Images [N, C, H, W], floats or uint8 in 0..255.
        """
        if not self._frozen:
            return images
        (net,) = self._frozen
        key = {**self._encoding(), "images": fingerprint({"": images})}
        return embed_once(self.name, "images", (len(images), self.width), key, lambda: self._start(net, images))

    def embedder(self) -> Embedder | None:
        """Return the network if it is frozen: images [N, C, H, W], floats or uint8 in 0..255, to embeddings [N, F]."""
        return Embedder(self._frozen[0], self._features) if self._frozen else None

    def stamp(self) -> str:
        """Return a hash of everything but the images that embeddings depend on."""
        return hashlib.sha256(json.dumps(self._encoding(), sort_keys=True).encode()).hexdigest()

    def _encoding(self) -> dict[str, Any]:
        return {
            "network": self.name,
            "weights": fingerprint(self._frozen[0].state_dict()),
            "card": fingerprint({"mean": self.mean, "std": self.std}),
            "size": self.size,
            "interpolation": self.interpolation,
            "normalize": self.normalize,
        }

    def _start(self, net: nn.Module, images: Tensor) -> tuple[Tensor, Embed]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return torch.arange(len(images)), lambda rows: self._features(net, images[rows].to(device))

    def example(self) -> Tensor:
        """Return an example input with two embeddings if the encoder is frozen, else two images."""
        return torch.zeros(2, self.width) if self.is_frozen else torch.zeros(2, *self.input_shape)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.net is None else self._features(self.net, x)

    def _features(self, net: nn.Module, x: Tensor) -> Tensor:
        x = as_float(x)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode=self.interpolation, antialias=True)
            x = x.clamp(0, 1) if self.interpolation == "bicubic" else x
        x = x.expand(-1, self.colours, -1, -1)
        x = net((x - self.mean.to(x)) / self.std.to(x))
        return F.normalize(x, dim=1) if self.normalize else x


def weights_file(weights: str) -> Path:
    """Return the file that ``model.weights`` names: a file, a folder with one, or a path in an installed package.

    Raises:
        UserError: There is no such file.
    """
    path = Path(weights).expanduser()
    path = path if path.exists() else in_package("model.weights", weights) or path
    if not path.is_dir():
        require(path.is_file(), f"model.weights={weights}: no such file{nearest_path(path)}")
        return path
    found = [path / name for name in FILES if (path / name).is_file()]
    require(bool(found), f"model.weights={weights}: the folder has none of {', '.join(FILES)}")
    return found[0]


def load_in_order(net: nn.Module, file: Path, where: str) -> None:
    """Assign the tensors of a file to those of a network in order.

    Tensors that the network lacks at the end of the file, as those of a classifier, are left out.

    Args:
        net: Network to change in place.
        file: File of tensors by name, in torch's format or safetensors.
        where: Configuration key and value, for messages.

    Raises:
        UserError: The file cannot be read, or numbers or shapes of the tensors differ.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            stored: Mapping[str, Tensor] = load_file(file)
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True)
        if not all(isinstance(value, Tensor) for value in stored.values()):
            raise ValueError("no file of tensors by name")
    except Exception as error:  # of many kinds in torch and safetensors
        raise UserError(f"{where}: cannot be read as weights ({_short(error)})") from None
    wanted = net.state_dict()
    require(
        len(wanted) <= len(stored) <= len(wanted) + 2,
        f"{where}: has {len(stored)} tensors, and the network {len(wanted)} without a classifier: another network",
    )
    for (name, value), (theirs, given) in zip(wanted.items(), stored.items(), strict=False):
        require(
            value.shape == given.shape,
            f"{where}: tensor {theirs} is {list(given.shape)}, and {name} of the network {list(value.shape)}",
        )
    net.load_state_dict(dict(zip(wanted, stored.values(), strict=False)))


def import_timm() -> Any:
    """Import timm.

    Raises:
        UserError: timm is missing or too old, or its torchvision does not fit the installed torch.
    """
    try:
        import timm
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "timm":
            raise UserError("model=timm needs timm: pip install 'metarun[vision]'") from None
        raise UserError(
            f"model=timm: timm cannot be imported ({_short(error)}); it needs a torchvision that is built for torch "
            f"{torch.__version__}"
        ) from error
    found = re.findall(r"\d+", getattr(timm, "__version__", "1.0.26"))[:3]
    require(
        tuple(map(int, found)) >= MIN_VERSION,
        f"model=timm: timm {'.'.join(found)} loads weight files as pickles, which can run code; "
        f"pip install -U 'timm>={'.'.join(map(str, MIN_VERSION))}'",
    )
    return timm


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
