"""What every few-shot image family shares: augmentation on the device, and the picture of an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from metarun.tasks.episode import EpisodeShape, TaskBatch
from metarun.tasks.fewshot import FewShot
from metarun.tasks.rng import uniforms
from metarun.tasks.to_device import to_device
from metarun.tasks.vision.images import Preparation
from metarun.types import Ink, Resizing, Split

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner


class ImageFewShot(FewShot):
    """Few-shot classification of images: the data are one uint8 tensor [N, channels, height, width]."""

    modality: ClassVar[str] = "image"
    resize: Resizing = "crop"
    """How images are brought to the size of the family."""
    ink: Ink | None = None
    """Whether drawings are light on dark or dark on light; ``None`` for photographs."""
    augment: float = 0.0
    """How far meta-training images are warped: each by an affine map of its own, whose four linear entries
    differ from the identity by up to this, and whose shift is up to half of it, in halves of the image.

    At .2 that turns or shears by up to 11 degrees, scales by up to a fifth, shifts by up to a twentieth.
    """
    crop: int = 0
    """Meta-training images are cropped to their size at random, after so many black pixels are put on each side."""
    flip: bool = False
    """Half of the meta-training images are mirrored, left to right."""
    jitter: float = 0.0
    """Brightness, contrast and saturation of each meta-training image are multiplied, in this order, each by a
    factor of its own between 1 - jitter (at least 0) and 1 + jitter."""

    @property
    def preparation(self) -> Preparation:
        """How an image becomes one of this family, a user's own too."""
        channels, height, width = self.spec.input_shape
        return Preparation(channels, height, width, self.resize, self.ink)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        batch = super().batch(split, indices, shape)
        if split != "train" or not (self.augment or self.crop or self.flip or self.jitter):
            return batch
        support, query = batch.support, batch.query
        at = support.x.shape[1]
        x = support.x if query is support else torch.cat([support.x, query.x], 1)
        x = self.augmented(x, indices)
        learned = replace(support, x=x[:, :at])
        return TaskBatch(learned, learned if query is support else replace(query, x=x[:, at:]))

    def augmented(self, x: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Meta-training images [T, N, C, H, W] of tasks ``indices``, changed at random; the same whenever asked for."""

        def drawn(count: int, stream: int) -> NDArray[np.float64]:
            u = uniforms(self.seed, "train", indices, count * x.shape[1], stream)
            return u.reshape(*x.shape[:2], count)

        def on_device(values: NDArray[np.float64]) -> torch.Tensor:
            return to_device(values, self.device, torch.get_default_dtype())

        if self.crop or self.flip:
            u = drawn(3, 4)
            shifts = np.floor(u[..., :2] * (2 * self.crop + 1)).astype(np.int64) - self.crop
            mirrored = to_device(u[..., 2] < 0.5, self.device) if self.flip else None
            x = shifted(x, to_device(shifts, self.device), mirrored, self.crop)
        if self.augment:
            x = warped(x, on_device(self.augment * (2 * drawn(6, 3) - 1).reshape(*x.shape[:2], 2, 3) * [1, 1, 0.5]))
        if self.jitter:
            x = jittered(x, on_device((1 + self.jitter * (2 * drawn(3, 5) - 1)).clip(0)))
        return x

    def augmentation(self) -> dict[str, Any]:
        """How meta-training images are changed, for :meth:`protocol`."""
        return {"crop": self.crop, "flip": self.flip, "jitter": self.jitter}

    def picture(self, learner: Learner) -> Figure:
        """One test episode: a row a class, its support images, then query images with the label predicted.

        At most 10 classes, 5 support and 10 query images of each are drawn; the episode itself is whole.
        """
        from matplotlib.figure import Figure

        shape = self.shape
        batch, (drawn, _) = self.batch("test", [0]), self.rows("test", [0], shape)
        learner.eval()
        with torch.no_grad():
            predicted = learner.adapt(batch.support)(batch.query.x)[0].argmax(-1).cpu()
        right = float((predicted == batch.query.y[0].cpu()).float().mean())
        each = shape.query or shape.shot
        way, shots, queries = min(shape.way, 10), min(shape.shot, 5), min(each, 10)
        support = _displayed(batch.support.x[0]).reshape(shape.way, shape.shot, *self._pixels())
        query = _displayed(batch.query.x[0]).reshape(shape.way, each, *self._pixels())
        guesses = predicted.view(shape.way, each)

        figure = Figure(figsize=(0.75 * (shots + queries) + 1.6, 0.8 * way + 0.7), layout="constrained")
        left, main = figure.subplots(1, 2, width_ratios=[shots, queries])
        _tiles(left, support[:way, :shots])
        _tiles(main, query[:way, :queries])
        names = [self.data.names[c] for c in drawn[0]]
        left.set_yticks(np.arange(way) + 0.5, [f"{name[-18:]}  {i}" for i, name in enumerate(names[:way])])
        left.set_title("support", fontsize=9)
        main.set_title(f"query, with the label predicted ({100 * right:.0f} % right)", fontsize=9)
        for label in range(way):
            for j in range(queries):
                guess = int(guesses[label, j])
                colour = "tab:green" if guess == label else "tab:red"
                box = {"facecolor": colour, "edgecolor": "none", "pad": 1.2}
                text = {"color": "white", "fontsize": 7, "va": "top", "weight": "bold", "bbox": box}
                main.text(j + 0.04, label + 0.06, str(guess), **text)
                if guess != label:
                    xs, ys = (j + 0.01, j + 0.99), (label + 0.01, label + 0.99)
                    main.plot([*xs, *xs[::-1], xs[0]], [ys[0], ys[0], ys[1], ys[1], ys[0]], color=colour, lw=2)
        return figure

    def _pixels(self) -> tuple[int, int, int]:
        """Height, width and channels as displayed."""
        channels, height, width = self.spec.input_shape
        return height, width, 3 if channels == 3 else 1


def shifted(x: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor | None, reach: int) -> torch.Tensor:
    """Each image moved by whole pixels, black coming in, and then mirrored where ``mirrored``: as ``x``, as its type.

    x [T, N, C, H, W]; ``shifts`` [T, N, 2], from -reach to reach: the image's pixel (y, x) comes from (y, x) + shift;
    ``mirrored`` [T, N].
    """
    height, width = x.shape[-2:]
    images = x.flatten(0, 1)
    windows = F.pad(images, [reach] * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view: no window is copied
    down, across = (shifts.flatten(0, 1) + reach).unbind(1)
    moved = windows[torch.arange(len(images), device=x.device), :, down, across]
    if mirrored is not None:
        moved = torch.where(mirrored.flatten()[:, None, None, None], moved.flip(3), moved)
    return moved.view(x.shape)


def jittered(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation of each image times ``factors`` [T, N, 3]: floats in 0..1, as ``x``.

    x [T, N, C, H, W]. Contrast is about the image's mean grey, saturation about each pixel's grey (Rec. 601).
    """
    x = x.to(factors.dtype) / 255 if x.dtype == torch.uint8 else x
    brightness, contrast, saturation = factors[..., None, None, None].unbind(2)

    def grey(x: torch.Tensor) -> torch.Tensor:
        if x.shape[2] != 3:
            return x.mean(2, keepdim=True)
        red, green, blue = x.split(1, 2)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    x = (x * brightness).clamp_(0, 1)  # a tensor of its own from here on
    mean = grey(x).mean((2, 3, 4), keepdim=True)
    x.sub_(mean).mul_(contrast).add_(mean).clamp_(0, 1)
    if x.shape[2] != 3:
        return x
    by_pixel = grey(x)
    return x.sub_(by_pixel).mul_(saturation).add_(by_pixel).clamp_(0, 1)


def warped(x: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Each image under its affine map: x [T, N, C, H, W], ``maps`` [T, N, 2, 3] -> floats in 0..1, as ``x``.

    ``maps`` are differences from the identity; an image is 2 wide and high. What comes from outside repeats
    the border.
    """
    tasks, images = x.shape[:2]
    theta = maps.flatten(0, 1) + torch.eye(2, 3, device=x.device)
    flat = x.flatten(0, 1)
    flat = flat.to(theta.dtype) / 255 if flat.dtype == torch.uint8 else flat
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(tasks, images, *x.shape[2:])


def _displayed(x: torch.Tensor) -> NDArray[np.float32]:
    """Images [N, C, H, W] as [N, H, W, 3 or 1] in 0..1: three channels as colour, others as their mean."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float().clamp(0, 1)
    x = x if x.shape[1] == 3 else x.mean(1, keepdim=True)
    return x.permute(0, 2, 3, 1).cpu().numpy()


def _tiles(ax: Axes, images: NDArray[np.float32]) -> None:
    """Images [rows, columns, H, W, C] in unit squares of ``ax``, row 0 at the top, with a thin gap."""
    rows, columns, height, width, channels = images.shape
    gap = max(1, height // 20)
    padded = np.ones((rows, columns, height + gap, width + gap, channels), dtype=np.float32)
    padded[:, :, gap // 2 : gap // 2 + height, gap // 2 : gap // 2 + width] = images
    canvas = padded.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), columns * (width + gap), channels)
    ax.imshow(canvas.squeeze(-1) if channels == 1 else canvas, cmap="gray", vmin=0, vmax=1,
              extent=(0, columns, rows, 0), interpolation="nearest")  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)
