"""Models of timm (PyTorch Image Models) as embeddings of images."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from metarun.errors import RunFailed, UserError, nearest, require
from metarun.models.cards import Card, read_card
from metarun.models.image_encoder import ImageEncoder
from metarun.models.weights import load_by_name, load_in_order, read_weights, short, weights_file
from metarun.tasks.episode import Spec
from metarun.types import Interpolation, PathOrName, Positive, Rate, Tune

log = logging.getLogger("metarun")
MIN_VERSION = (1, 0, 26)
"""First version of timm that loads all weight files without running code from them."""


class Timm(ImageEncoder):
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
        weights: File of weights to load instead (``.safetensors``, or torch's ``.pt``, ``.pth`` and ``.bin``), a folder
            with weights and their ``config.json``, or ``package:path`` for a path inside an installed Python package.
            Tensors of a classifier are left out.
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
        colours = 3 if in_order and channels == 1 else channels
        if resize == "card":
            require(card.size is not None, f"model.resize=card: there is no card of {name}; give a number of pixels")
        size = card.size or (height, width) if resize == "card" else (resize or height, resize or width)
        given: dict[str, Any] = {"num_classes": 0, "in_chans": colours, "pretrained": pretrained}
        if getattr(known, "fixed_input_size", False):
            given["img_size"] = size
        try:
            net: nn.Module = timm.create_model(name, **given)
        except (OSError, ConnectionError) as error:
            raise RunFailed(f"model.name={name}: its weights could not be downloaded ({short(error)})") from error
        except Exception as error:  # of many kinds in timm, torch and safetensors
            raise UserError(
                f"model.name={name}: timm cannot build it for images of {channels} channels and "
                f"{size[0]}x{size[1]} pixels ({short(error)})"
            ) from error
        built: dict[str, Any] = getattr(net, "pretrained_cfg", None) or {}
        if file is not None:
            stored, classifier = read_weights(file, where), built.get("classifier") or ()
            if in_order:
                load_in_order(net, stored, where)
            else:
                load_by_name(net, stored, where, (classifier,) if isinstance(classifier, str) else classifier)
        card = own or Card.of(built)
        if file is not None and own is None and (mean is None or std is None):
            log.warning(
                "model.weights=%s has no card: images are standardised as timm's card of %s says; "
                "model.mean and model.std say otherwise", weights, name
            )  # fmt: skip
        super().__init__(
            spec,
            net,
            card,
            name=name,
            weights=file.name if file else name if pretrained or folder else None,
            size=size,
            colours=colours,
            interpolation=interpolation,
            mean=mean,
            std=std,
            tune=tune,
            rank=rank,
            normalize=bool(normalize),
            pretrained_on=pretrained_on,
        )


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
            f"model=timm: timm cannot be imported ({short(error)}); it needs a torchvision that is built for torch "
            f"{torch.__version__}"
        ) from error
    found = re.findall(r"\d+", getattr(timm, "__version__", "1.0.26"))[:3]
    require(
        tuple(map(int, found)) >= MIN_VERSION,
        f"model=timm: timm {'.'.join(found)} loads weight files as pickles, which can run code; "
        f"pip install -U 'timm>={'.'.join(map(str, MIN_VERSION))}'",
    )
    return timm
