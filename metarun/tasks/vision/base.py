"""The base class of few-shot image families: augmentation on the device, and the plot of an episode."""

from __future__ import annotations

import logging
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
from metarun.tasks.sheets import Query, Row, episode_title, image_sheet
from metarun.tasks.to_device import to_device
from metarun.tasks.vision.images import Preparation
from metarun.types import Ink, Resizing, Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.learner import Learner

log = logging.getLogger("metarun")


class ImageFewShot(FewShot):
    """The base class of few-shot image classification. The data are one uint8 tensor [N, channels, height, width].

    Attributes:
        resize: Method by which images are brought to the family's size.
        ink: ``light`` or ``dark`` if the training images are drawings, light on dark or dark on light. A user's drawing
            of the other kind is then inverted. ``None`` for photographs.
        augment: Strength of the random affine maps of meta-training images, 0 for none. Each of the four linear entries
            differs from the identity by up to this, and the shift is up to half of it, in halves of the image. At .2 an
            image is turned or sheared by up to 11 degrees, scaled by up to a fifth and shifted by up to a twentieth.
        crop: Black pixels added on each side of meta-training images before they are cropped at random.
        flip: If true, half of the meta-training images are mirrored left to right.
        jitter: Brightness, contrast and saturation of meta-training images are multiplied in this order, each by its
            own factor between 1 - jitter (at least 0) and 1 + jitter.
    """

    modality: ClassVar[str] = "image"
    resize: Resizing = "crop"
    ink: Ink | None = None
    augment: float = 0.0
    crop: int = 0
    flip: bool = False
    jitter: float = 0.0
    _encoder: Any = None
    _embeddings: torch.Tensor | None = None

    @property
    def preparation(self) -> Preparation:
        """The preprocessing of an image, the same for training images and a user's own."""
        channels, height, width = self.spec.input_shape
        return Preparation(channels, height, width, self.resize, self.ink)

    def prepare(self, model: Any) -> None:
        """Take over the encoder if the model is a frozen one. Images are then embedded, each once, at first use.

        Args:
            model: The model. It is a frozen encoder if its attribute ``is_frozen`` is true.
        """
        frozen = getattr(model, "is_frozen", False)
        self._encoder, self._embeddings, self._embedded = model if frozen else None, None, set[Split]()

    @property
    def _augments(self) -> bool:
        return bool(self.augment or self.crop or self.flip or self.jitter)

    def _embed(self, split: Split) -> None:
        """Embed the images of a split."""
        if split in self._embedded:
            return
        if split == "train" and self._augments:
            log.warning("meta-training images are not augmented: model.tune=frozen embeds each image once")
        offsets = self.data.offsets
        rows = torch.from_numpy(np.concatenate([np.arange(offsets[c], offsets[c + 1]) for c in self.classes[split]]))
        embedded = self._encoder.encode(self.data.x[rows.to(self.data.x.device)]).to(self.device)
        if self._embeddings is None:
            self._embeddings = embedded.new_zeros(len(self.data.x), *embedded.shape[1:])
        self._embeddings[rows.to(self.device)] = embedded
        self._embedded.add(split)

    def to(self, device: torch.device) -> ImageFewShot:
        super().to(device)
        if self._embeddings is not None:
            self._embeddings = self._embeddings.to(device)
        return self

    def examples(self, index: torch.Tensor) -> torch.Tensor:
        return super().examples(index) if self._embeddings is None else self._embeddings[index]

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        if self._encoder is not None:
            self._embed(split)
            return super().batch(split, indices, shape)
        batch = super().batch(split, indices, shape)
        if split != "train" or not self._augments:
            return batch
        support, query = batch.support, batch.query
        at = support.x.shape[1]
        x = support.x if query is support else torch.cat([support.x, query.x], 1)
        x = self.augmented(x, indices)
        learned = replace(support, x=x[:, :at])
        return TaskBatch(learned, learned if query is support else replace(query, x=x[:, at:]))

    def augmented(self, x: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
        """Augment meta-training images. The result is the same in every call.

        Args:
            x: Images [T, N, C, H, W].
            indices: Numbers of the T tasks.

        Returns:
            Images [T, N, C, H, W].
        """

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

    def augmentation(self, *names: str) -> dict[str, Any]:
        """Return keys of the augmentation of meta-training images, for :meth:`protocol`.

        A frozen encoder embeds images without augmentation: the values are then 0 and false.

        Args:
            names: Attributes among ``augment``, ``crop``, ``flip`` and ``jitter``.
        """
        values = {name: getattr(self, name) for name in names}
        return values if self._encoder is None else {name: type(value)() for name, value in values.items()}

    def picture(self, learner: Learner) -> Figure:
        """Plot one test episode: a row for each class with its support images, then query images with the predicted
        class.

        At most 10 classes, 5 support and 10 query images of each are drawn. The title gives the accuracy on the whole
        episode.

        Args:
            learner: The trained algorithm.

        Returns:
            The figure.
        """
        shape = replace(self.shape, varied=False, unknown=0)
        batch, (drawn, rows) = self.batch("test", [0], shape), self.rows("test", [0], shape)
        learner.eval()
        with torch.no_grad():
            predicted = learner.adapt(batch.support)(batch.query.x)[0].argmax(-1).cpu()
        right = float((predicted == batch.query.y[0].cpu()).float().mean())
        each = shape.query or shape.shot
        images = self.data.x[torch.from_numpy(rows[0].reshape(-1)).to(self.data.x.device)]
        shown = _displayed(images).reshape(shape.way, -1, *self._pixels())
        support, query = shown[:, : shape.shot], shown[:, shape.shot :] if shape.query else shown
        guesses, names = predicted.view(shape.way, each).tolist(), [self.data.names[c] for c in drawn[0]]
        sheet = [
            Row(names[label], list(support[label, :5]),
                [Query(image, names[guess], guess == label)
                 for image, guess in zip(query[label, :10], guesses[label], strict=False)])
            for label in range(min(shape.way, 10))
        ]  # fmt: skip
        figure = image_sheet(sheet, "queries, with the predicted class", cell=0.8)
        count, on_sheet = shape.way * each, sum(len(row.queries) for row in sheet)
        figure.suptitle(episode_title(right, count, f"{on_sheet} shown" if on_sheet < count else ""))
        return figure

    def _pixels(self) -> tuple[int, int, int]:
        """Return height, width and channels of a displayed image."""
        channels, height, width = self.spec.input_shape
        return height, width, 3 if channels == 3 else 1


def shifted(x: torch.Tensor, shifts: torch.Tensor, mirrored: torch.Tensor | None, reach: int) -> torch.Tensor:
    """Shift images by whole pixels, with black coming in, then mirror them.

    Args:
        x: Images [T, N, C, H, W].
        shifts: Offsets [T, N, 2] from -reach to reach; pixel (y, x) comes from (y, x) + shift.
        mirrored: Images to mirror, [T, N] bool; ``None``: none.
        reach: Largest absolute shift.

    Returns:
        Images with the shape and dtype of ``x``.
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
    """Multiply brightness, contrast and saturation of images.

    Contrast is relative to the image's mean grey value, saturation to each pixel's grey value (Rec. 601).

    Args:
        x: Images [T, N, C, H, W].
        factors: Brightness, contrast and saturation factors [T, N, 3].

    Returns:
        Floats in 0..1 with the shape of ``x``.
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
    """Apply affine maps to images; pixels from outside repeat the border.

    Args:
        x: Images [T, N, C, H, W].
        maps: Differences of the maps from the identity, [T, N, 2, 3], in coordinates from -1 to 1.

    Returns:
        Floats in 0..1 with the shape of ``x``.
    """
    tasks, images = x.shape[:2]
    theta = maps.flatten(0, 1) + torch.eye(2, 3, device=x.device)
    flat = x.flatten(0, 1)
    flat = flat.to(theta.dtype) / 255 if flat.dtype == torch.uint8 else flat
    grid = F.affine_grid(theta, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, padding_mode="border", align_corners=False).view(tasks, images, *x.shape[2:])


def _displayed(x: torch.Tensor) -> NDArray[np.float32]:
    """Convert images [N, C, H, W] to [N, H, W, 3 or 1] in 0..1; channel numbers other than 3 are averaged."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float().clamp(0, 1)
    x = x if x.shape[1] == 3 else x.mean(1, keepdim=True)
    return x.permute(0, 2, 3, 1).cpu().numpy()
