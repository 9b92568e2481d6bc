"""Small networks on letters, and quadratics: a distribution of training problems for learned optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Spec
from metarun.tasks.files import cached
from metarun.tasks.optimization.problem import ACTIVATIONS, Problem, unit_of
from metarun.tasks.rng import choose, normals, uniforms
from metarun.tasks.splits import split_classes
from metarun.tasks.to_device import to_device
from metarun.tasks.vision.glyphs import build, fingerprint
from metarun.types import Fraction, Positive, Split

BATCHES = (8, 16, 32, 64)
"""Sizes of minibatches."""
SPREAD = 30.0
"""Largest ratio of two scales of a quadratic's unknowns; their curvatures have its square."""
INK, CONTRAST = 0.15, 0.3
"""Mean and deviation of pixels in 0..1, with which images are standardised."""


class Networks(Task):
    """Training of networks with random sizes, on letters that each problem draws, and minimisation of quadratics.

    A share ``quadratics`` of the problems is linear regression on as many examples as unknowns, whose inputs have
    scales from a log-uniform distribution, without minibatches. The others classify 2 to ``way`` letters of
    ``size`` x ``size`` pixels: a share ``conv`` of them by one or two convolutions and a linear layer, the rest by a
    multilayer perceptron of 0 to ``depth`` hidden layers. Widths are log-uniform. Minibatches of 8 to 64 examples,
    activations and the scale of the initial weights, .5 to 2 times that of unit variance, are random, too. Splits
    have different letters.

    Args:
        seed: Seed of the problems.
        quadratics: Share of quadratics.
        conv: Share of convolutional networks among the networks.
        widths: Smallest and largest number of units of a hidden layer, and of unknowns.
        depth: Largest number of hidden layers.
        way: Largest number of classes.
        size: Height and width of the images in pixels.
        examples: Training examples of a problem, a multiple of 64.
        val: Fraction of the letters for meta-validation.
        test: Fraction of the letters for meta-test.
    """

    kind: ClassVar[str] = "optimization"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        seed: int,
        *,
        quadratics: Fraction,
        conv: Fraction,
        widths: Sequence[Positive],
        depth: Positive,
        way: Positive,
        size: Positive,
        examples: Positive,
        val: Fraction,
        test: Fraction,
    ) -> None:
        require(size >= 8, f"task.size={size}: letters need at least 8 pixels")
        require(way >= 2, f"task.way={way}: at least 2 classes")
        require(examples % max(BATCHES) == 0, f"task.examples={examples}: a multiple of {max(BATCHES)}")
        require(len(widths) == 2 and widths[0] <= widths[1], f"task.widths={[*widths]}: the smallest and the largest")
        self.seed, self.quadratics, self.conv, self.size = seed, quadratics, conv, size
        self.widths, self.depth, self.way, self.examples = widths, depth, way, examples
        stored = cached("glyphs", fingerprint(size), lambda: build(size))
        self.images, self.offsets = stored["x"], stored["offsets"]
        self.letters = split_classes(stored["groups"], val=val, test=test, seed=0, least=way)
        self.spec = Spec("optimization", self.modality, (1,), 1)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> list[Problem]:
        return [self.problem(split, index) for index in indices]

    def problem(self, split: Split, index: int) -> Problem:
        """Return one problem."""
        u = uniforms(self.seed, split, [index], 16)[0]
        if u[0] < self.quadratics:
            return self.quadratic(split, index, u)
        way, widths = 2 + int(u[1] * (self.way - 1)), [self.width(each) for each in u[8:16]]
        if u[2] < self.conv:
            channels = [1, *widths[: 1 + int(2 * u[3])]]
            shapes: list[tuple[int, ...]] = [(after, before, 3, 3) for before, after in pairwise(channels)]
            side = self.size
            for _ in shapes:
                side = (side + 1) // 2
            sizes = [channels[-1] * side**2, way]
        else:
            shapes, sizes = [], [self.size**2, *widths[: int(u[3] * (self.depth + 1))], way]
        shapes += [(after, before) for before, after in pairwise(sizes)]
        gain = 0.5 * 4 ** u[4]
        weights = [gain / sqrt(np.prod(shape[1:])) * drawn for shape, drawn in self.normal(split, index, shapes)]
        initial: dict[str, Any] = {}
        for i, weight in enumerate(weights):
            initial |= {f"{i}.weight": weight, f"{i}.bias": np.zeros(len(weight))}
        x, y = self.classes(split, index, way)
        return self.assembled(initial, x, y, BATCHES[int(u[5] * len(BATCHES))], [*ACTIVATIONS][int(u[6] * 5)], way)

    def quadratic(self, split: Split, index: int, u: NDArray[np.float64]) -> Problem:
        """Return a problem of linear regression."""
        size = self.width(u[8])
        scales = SPREAD ** -uniforms(self.seed, split, [index], size, stream=2)[0]
        (_, x), (_, w), (_, start) = self.normal(split, index, [(size, size), (1, size), (1, size)])
        x = x / sqrt(size) * scales
        return self.assembled({"0.weight": 2 * u[4] * start}, x, x @ (w / scales).T, size, "relu", 1)

    def width(self, u: float) -> int:
        """Return a log-uniform number of units."""
        least, most = self.widths
        return int(least * ((most + 1) / least) ** u)

    def normal(self, split: Split, index: int, shapes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[int, ...], Any]]:
        """Return each shape with standard normals of it."""
        sizes = [int(np.prod(shape)) for shape in shapes]
        parts = np.split(normals(self.seed, split, [index], sum(sizes), stream=1)[0], np.cumsum(sizes)[:-1])
        return [(shape, part.reshape(shape)) for shape, part in zip(shapes, parts, strict=True)]

    def classes(self, split: Split, index: int, way: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return standardised images [N, 1, size, size] of ``way`` letters and their classes [N]."""
        letters = self.letters[split]
        chosen = letters[choose(uniforms(self.seed, split, [index], way, stream=3), len(letters))[0]]
        u, v = uniforms(self.seed, split, [index], 2 * self.examples, stream=4).reshape(2, -1)
        y = (u * way).astype(np.int64)
        first, after = self.offsets[chosen[y]], self.offsets[chosen[y] + 1]
        x = self.images[first + (v * (after - first)).astype(np.int64)]
        return (x / 255 - INK) / CONTRAST, y

    def assembled(self, initial: dict[str, Any], x: Any, y: Any, batch: int, activation: str, outputs: int) -> Problem:
        """Return a problem with its tensors on the device."""
        dtype = torch.get_default_dtype()
        unit = unit_of(torch.from_numpy(y), outputs)
        start = {name: to_device(value, self.device, dtype) for name, value in initial.items()}
        target = to_device(y, self.device, None if y.dtype == np.int64 else dtype)
        return Problem(start, to_device(x, self.device, dtype), target, batch, activation, unit)

    def protocol(self) -> dict[str, Any]:
        keys = ("quadratics", "conv", "widths", "depth", "way", "size", "examples")
        return {"data": "networks on letters, and quadratics", **{key: getattr(self, key) for key in keys}}
