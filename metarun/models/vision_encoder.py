"""Pretrained image encoders of transformers, from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metarun.errors import UserError, require
from metarun.models.cards import processor_card
from metarun.models.encoder import load, locate
from metarun.models.image_encoder import ImageEncoder
from metarun.models.weights import short
from metarun.tasks.episode import Spec
from metarun.types import Interpolation, PathOrName, Positive, Rate, Tune

Pooling = Literal["cls", "mean", "own"]


class VisionEncoder(ImageEncoder):
    """Pooled states of a vision model of transformers: ViT, DeiT, DINOv2, BEiT, CLIP's image tower, ResNet, ConvNeXt.

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, features]; with ``tune=frozen`` maps the
    embeddings of :meth:`encode` to themselves. Images are resized, rescaled and standardised as
    ``preprocessor_config.json`` says, without its crop. Weights are read from safetensors only, and no code of a model
    is run.

    Args:
        spec: Shapes of the task.
        name: Folder with ``config.json``, ``preprocessor_config.json`` and safetensors, ``package:folder`` for a folder
            inside an installed Python package, or ``name`` or ``name@revision`` of a model on the Hugging Face hub.
        pooling: ``cls`` for the state of the first token, ``mean`` over all tokens or places, or ``own`` for the pooled
            output of the model, if it does not come from a layer with weights that is named ``pooler``.
        resize: Height and width in pixels to which images are resized on the device; ``card`` for the card's.
        interpolation: Interpolation of resizing, with antialiasing; ``None`` for the card's.
        mean: Mean of each colour in 0..1 that is subtracted; ``card`` for the card's.
        std: Deviation of each colour by which images are divided; ``card`` for the card's.
        tune: Weights to train, ``frozen``, ``norm``, ``lora`` or ``all``; see :data:`~metarun.types.Tune`.
        rank: Rank of the low-rank updates.
        normalize: If true, scale features to length 1.
        pretrained_on: Data that the weights were trained on and their overlap with the test classes, for the protocol.

    Raises:
        UserError: The model is not found, cannot be read or does not read images of this size, or transformers is not
            installed.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        name: PathOrName,
        pooling: Pooling,
        resize: Positive | Literal["card"],
        interpolation: Interpolation | None,
        mean: Sequence[float] | Literal["card"],
        std: Sequence[Rate] | Literal["card"],
        tune: Tune,
        rank: Positive,
        normalize: bool,
        pretrained_on: str | None = None,
    ) -> None:
        folder = locate(name)
        where = f"model.name={name}"
        card = processor_card(folder, where)
        net = load(folder)
        net = getattr(net, "vision_model", net)  # of models that also read texts, as CLIP
        require(
            getattr(net, "main_input_name", "") == "pixel_values",
            f"{where}: {type(net).__name__} reads no images; for texts: model=encoder model.name={name}",
        )
        colours = int(getattr(net.config, "num_channels", 3))
        if resize == "card":
            require(card.size is not None, f"model.resize=card: {where} states no size; give a number of pixels")
            size = card.size or (0, 0)
        else:
            size = (resize, resize)
        pooled = Pooled(net, pooling, where)
        try:
            with torch.no_grad():
                pooled.eval()(torch.zeros(1, colours, *size))
        except UserError:
            raise
        except Exception as error:  # of many kinds in transformers
            raise UserError(
                f"{where}: cannot read images of {size[0]}x{size[1]} pixels ({short(error)}); change model.resize"
            ) from None
        super().__init__(
            spec,
            pooled.train().to(torch.get_default_dtype()),
            card,
            name=str(name),
            weights=str(name),
            size=size,
            colours=colours,
            interpolation=interpolation,
            mean=None if mean == "card" else mean,
            std=None if std == "card" else std,
            tune=tune,
            rank=rank,
            normalize=normalize,
            pretrained_on=pretrained_on,
        )
        self.folder = Path(folder)
        self.batchable = self.is_frozen  # code of other libraries may branch on values, which vmap does not support

    def _encoding(self) -> dict[str, Any]:
        (net,) = self._frozen
        return {**super()._encoding(), "pooling": net.pooling}


class Pooled(nn.Module):
    """A vision model with its pooling: standardised images [N, C, H, W] -> features [N, F].

    Args:
        net: A model of transformers.
        pooling: How states are pooled.
        where: Configuration key and value, for messages.
    """

    def __init__(self, net: nn.Module, pooling: Pooling, where: str) -> None:
        super().__init__()
        self.net, self.pooling, self._where = net, pooling, where

    def forward(self, images: Tensor) -> Tensor:
        found = self.net(pixel_values=images)
        if self.pooling == "own":
            pooled = getattr(found, "pooler_output", None)
            require(pooled is not None, f"model.pooling=own: {self._where} has no pooled output; allowed: cls, mean")
            assert pooled is not None
            return pooled.flatten(1)
        states = found.last_hidden_state
        if states.dim() == 4:  # [N, F, height, width] of convolutional networks
            require(self.pooling == "mean", f"model.pooling=cls: {self._where} has no tokens; allowed: mean, own")
            return states.mean((2, 3))
        return states[:, 0] if self.pooling == "cls" else states.mean(1)
