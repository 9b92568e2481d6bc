"""Pretrained encoders of images: preprocessing by the card of the weights, tuning, and embeddings computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.models.cards import Card
from metarun.models.mlp import as_float
from metarun.models.pretrained import Embed, Embedder, embed_once, fingerprint, pretrained_protocol, select_trained
from metarun.tasks.episode import Spec
from metarun.types import Interpolation, Rate, Tune


class ImageEncoder(nn.Module):
    """The base class of pretrained encoders of images. Subclasses build the network and read its card.

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, features]; with ``tune=frozen`` maps the
    embeddings of :meth:`encode` to themselves.

    Args:
        spec: Shapes of the task.
        net: Network of standardised images [N, colours, *size] to features [N, features].
        card: Preprocessing that the weights expect.
        name: Name of the network.
        weights: Name of its weights; ``None`` if they are random.
        size: Height and width in pixels to which images are resized.
        colours: Number of colours that the network reads; grey images are repeated in each.
        interpolation: Interpolation of resizing, with antialiasing; ``None`` for the card's.
        mean: Mean of each colour in 0..1 that is subtracted; ``None`` for the card's.
        std: Deviation of each colour by which images are divided; ``None`` for the card's.
        tune: Weights to train, ``frozen``, ``norm``, ``lora`` or ``all``; see :data:`~metarun.types.Tune`.
        rank: Rank of the low-rank updates.
        normalize: If true, scale features to length 1.
        pretrained_on: Data that the weights were trained on and their overlap with the test classes, for the protocol.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: Spec,
        net: nn.Module,
        card: Card,
        *,
        name: str,
        weights: str | None,
        size: tuple[int, int],
        colours: int,
        interpolation: Interpolation | None,
        mean: Sequence[float] | None,
        std: Sequence[Rate] | None,
        tune: Tune,
        rank: int,
        normalize: bool,
        pretrained_on: str | None,
    ) -> None:
        super().__init__()
        self.size, self.colours = size, colours
        self.interpolation = interpolation or ("bilinear" if card.interpolation == "bilinear" else "bicubic")
        for key, chosen, default in (
            ("mean", mean or card.mean, (0.485, 0.456, 0.406)),
            ("std", std or card.std, (0.229, 0.224, 0.225)),
        ):
            values = torch.tensor(chosen or default, dtype=torch.get_default_dtype())
            values = values if len(values) == self.colours else values.mean().expand(self.colours)
            self.register_buffer(key, values.view(-1, 1, 1).clone(), persistent=False)
        self.name, self.normalize, self.input_shape = name, normalize, spec.input_shape
        self.weights, self.tune, self.pretrained_on = weights, tune, pretrained_on
        self.is_frozen = tune == "frozen"
        self.net: nn.Module | None = None
        self._frozen: tuple[nn.Module, ...] = ()  # in a tuple, so that its weights are not the model's
        if self.is_frozen:
            self._frozen = (net.eval().requires_grad_(False),)
            with torch.no_grad():
                self.width = self._features(net, torch.zeros(1, *spec.input_shape)).shape[1]
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
