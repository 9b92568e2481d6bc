"""Models of timm (PyTorch Image Models) as embeddings of images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.errors import RunFailed, UserError, nearest, nearest_path, require
from metarun.models.conv4 import as_float
from metarun.tasks.episode import Spec
from metarun.types import DataPath, Positive

MIN_VERSION = (1, 0, 26)
"""First version of timm that loads all weight files without running code from them."""


class Timm(nn.Module):
    """Pooled features of a timm model without its classifier.

    Maps images [N, C, H, W], floats or uint8 in 0..255, to features [N, features]. Inputs are standardised by the mean
    and standard deviation of the model's weights. The batch norm is torch's own, so ``algorithm.norm=support`` does not
    work. Needs the extra ``vision``.

    Args:
        spec: Shapes of the task.
        name: Name of a timm model, such as ``resnet18.a1_in1k`` or ``vit_tiny_patch16_224``, also ``hf-hub:...`` and
            ``local-dir:...``.
        pretrained: If true, use the published weights, from the cache of the Hugging Face hub or by download.
        weights: File of weights to load instead.
        resize: Height and width in pixels to which images are resized on the device, for weights that were trained at
            another size. With ``None``, models for a fixed size (vision transformers) are built for that of the images.

    Raises:
        UserError: timm is missing or too old, has no such model, or cannot build it for these images.
        RunFailed: The weights cannot be downloaded.
    """

    modalities: ClassVar[tuple[str, ...]] = ("image",)
    role: ClassVar[str] = "features"
    mean: Tensor
    std: Tensor

    def __init__(
        self, spec: Spec, *, name: str, pretrained: bool, weights: DataPath | None, resize: Positive | None
    ) -> None:
        super().__init__()
        timm = import_timm()
        plain = name.split(":", 1)[-1].split(".")[0] if ":" not in name else None
        if plain is not None and not timm.is_model(plain):
            raise UserError(f"model.name={name}: timm has no such model{nearest(plain, timm.list_models())}")
        require(
            not (pretrained and weights),
            "model.pretrained=true and model.weights exclude each other: give only one of them",
        )
        file = Path(weights).expanduser() if weights else None
        require(file is None or file.is_file(), f"model.weights={weights}: no such file{nearest_path(file or '')}")
        channels, height, width = spec.input_shape
        self.size = (height, width) if resize is None else (resize, resize)
        given: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "pretrained": pretrained}
        known = timm.models.get_pretrained_cfg(name) if plain is not None else None
        if getattr(known, "fixed_input_size", False):
            given["img_size"] = self.size
        if file is not None:
            given["checkpoint_path"] = str(file)
        try:
            self.net: nn.Module = timm.create_model(name, **given)
        except (OSError, ConnectionError) as error:
            raise RunFailed(f"model.name={name}: its weights could not be downloaded ({_short(error)})") from error
        except (RuntimeError, ValueError, TypeError, KeyError, AssertionError) as error:
            raise UserError(
                f"model.name={name}: timm cannot build it for images of {channels} channels and "
                f"{self.size[0]}x{self.size[1]} pixels ({_short(error)})"
            ) from error
        config = getattr(self.net, "pretrained_cfg", None) or {}
        for key, default in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            values = torch.tensor(config.get(key) or default, dtype=torch.get_default_dtype())
            values = values if len(values) == channels else values.mean().expand(channels)
            self.register_buffer(key, values.view(-1, 1, 1).clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = as_float(x)
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        return self.net((x - self.mean) / self.std)


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
