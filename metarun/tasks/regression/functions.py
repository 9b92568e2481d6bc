"""Function classes that are learned in context: linear, sparse linear, decision trees, two-layer networks."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import choose, normals, uniforms
from metarun.tasks.to_device import to_device
from metarun.types import NonNegative, Positive, Split

Array = NDArray[np.float64]


class Functions(Task):
    """Regression y = f(x) + noise at random x, with f of one class (Garg et al. 2022, arXiv:2208.01066, section 2,
    app. A).

    Args:
        seed: Seed of the tasks.
        function: The class of f. ``linear``: w.x with w ~ N(0, I). ``sparse_linear``: the same with all but
            ``sparsity`` entries of w set to 0. ``tree``: a full binary decision tree that goes right where a random
            coordinate of x is positive, with leaves N(0, 1). ``relu_network``: sqrt(2 / hidden) a.relu(W x) with
            entries of a and W from N(0, 1).
        size: Number of dimensions of x.
        sparsity: Number of non-zero entries of w in ``sparse_linear``.
        depth: Depth of the ``tree``.
        hidden: Number of hidden units of the ``relu_network``.
        normalise: If true, divide linear functions by sqrt(size) and sparse ones by sqrt(sparsity), so that y has
            variance 1. The paper reports errors normalised this way.
        noise: Standard deviation of the noise added to every y, in support and query set.
        shot: Support points of a task.
        query: Query points of a task.
        inputs: Distribution of x: ``normal``, N(0, I), or ``uniform`` on [-1/2, 1/2] in each dimension (von Oswald et
            al. 2023, arXiv:2212.07677). ``None``, as in runs from before the key: normal.
    """

    kind: ClassVar[str] = "regression"
    modality: ClassVar[str] = "vector"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    independent_tasks: ClassVar[bool] = True

    def __init__(
        self,
        seed: int,
        *,
        function: Literal["linear", "sparse_linear", "tree", "relu_network"],
        size: Positive,
        sparsity: Positive,
        depth: Positive,
        hidden: Positive,
        normalise: bool,
        noise: NonNegative,
        shot: Positive,
        query: Positive,
        inputs: Literal["normal", "uniform"] | None = None,
    ) -> None:
        require(
            function != "sparse_linear" or sparsity <= size,
            f"task.sparsity={sparsity} is more than the task.size={size} entries of w",
        )
        self.seed, self.function, self.size, self.noise = seed, function, size, noise
        self.inputs = inputs
        self.sparsity, self.depth, self.hidden, self.normalise = sparsity, depth, hidden, normalise
        self.shape: EpisodeShape = EpisodeShape(0, shot, query)
        self.spec = Spec("regression", self.modality, (size,), 1)

    def weights(self, split: Split, indices: Sequence[int]) -> Array:
        """Return the weights w of linear functions, [T, size]."""
        w = normals(self.seed, split, indices, self.size)
        if self.function == "sparse_linear":
            kept = choose(uniforms(self.seed, split, indices, self.sparsity, stream=3), self.size)
            mask = np.zeros_like(w)
            np.put_along_axis(mask, kept, 1.0, axis=1)
            w = w * mask
        entries = self.size if self.function == "linear" else self.sparsity
        return w / sqrt(entries) if self.normalise else w

    def values(self, split: Split, indices: Sequence[int], x: Array) -> Array:
        """Return f without noise at ``x`` [T, N, size], as [T, N]."""
        if self.function in ("linear", "sparse_linear"):
            return np.einsum("tnd,td->tn", x, self.weights(split, indices))
        if self.function == "relu_network":
            entries = normals(self.seed, split, indices, self.hidden * (self.size + 1))
            W = entries[:, self.hidden :].reshape(-1, self.hidden, self.size)
            units = np.maximum(np.einsum("tnd,thd->tnh", x, W), 0)
            return sqrt(2 / self.hidden) * np.einsum("tnh,th->tn", units, entries[:, : self.hidden])
        # Nodes are numbered as in a heap: the children of node k are 2 k + 1 (left) and 2 k + 2 (right).
        inner = 2**self.depth - 1
        asked = np.floor(self.size * uniforms(self.seed, split, indices, inner, stream=3)).astype(np.int64)
        leaves = normals(self.seed, split, indices, inner + 1)
        node = np.zeros(x.shape[:2], dtype=np.int64)
        for _ in range(self.depth):
            coordinate = np.take_along_axis(asked, node, axis=1)[..., None]
            node = 2 * node + 1 + (np.take_along_axis(x, coordinate, axis=2)[..., 0] > 0)
        return np.take_along_axis(leaves, node - inner, axis=1)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        count = shape.shot + shape.query
        drawn = uniforms if self.inputs == "uniform" else normals
        x = drawn(self.seed, split, indices, count * self.size, stream=1).reshape(-1, count, self.size)
        if self.inputs == "uniform":
            x = x - 0.5
        y = self.values(split, indices, x) + self.noise * normals(self.seed, split, indices, count, stream=2)
        both = np.concatenate([x, y[..., None]], axis=-1)
        points = to_device(both, self.device, torch.get_default_dtype())
        support, query = points.split([shape.shot, shape.query], dim=1)
        return TaskBatch(*(Labelled(part[..., :-1], part[..., -1:]) for part in (support, query)))

    def protocol(self) -> dict[str, Any]:
        keys = {"sparse_linear": "sparsity", "tree": "depth", "relu_network": "hidden"}
        own = {key: getattr(self, key) for function, key in keys.items() if function == self.function}
        return {
            "data": f"functions, {self.function}",
            "size": self.size,
            **({"inputs": "uniform"} if self.inputs == "uniform" else {}),
            **own,
            "normalise": self.normalise,
            "noise": self.noise,
            "shot": self.shape.shot,
            "query": self.shape.query,
        }
