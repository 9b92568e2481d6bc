"""Synthetic tables from structural causal models, networks and trees: the prior of a prior-fitted network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from metarun.errors import require
from metarun.tasks.base import Task
from metarun.tasks.counts import shared_count
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from metarun.tasks.rng import choose
from metarun.tasks.tabular.columns import Effects
from metarun.tasks.tabular.draws import Array, Draws, between, log_range, pick, standardised
from metarun.tasks.tabular.labels import classes, first_of_each
from metarun.tasks.tabular.structures import LAYERS, UNITS, Networks, roots, tree_scores
from metarun.tasks.to_device import to_device
from metarun.types import Count, Fraction, NonNegative, Positive, Rate, Split


class TablePrior(Task):
    """Classification of rows of synthetic tables (Hollmann et al. 2023, arXiv:2207.01848, section 4).

    A table's target is a node of a structural causal model whose other nodes are the columns, or a random network or
    random trees of the columns. Columns are then changed as real tables change them. Tasks of a group share their
    numbers of rows and columns, so that no batch is padded. Every class of a table has a support row.

    Args:
        seed: Seed of the tables.
        way: Largest number of classes; 0 is for :class:`TableRegressionPrior`.
        columns: Smallest and largest number of columns.
        least_shot: Smallest number of support rows.
        shot: Largest number of support rows.
        query: Query rows of a table.
        together: Number of consecutive tasks that share their numbers of rows and columns.
        causal: Weight of tables whose target is a node of a structural causal model.
        networks: Weight of tables whose target is a network of the columns.
        trees: Weight of tables whose target is a sum of trees of the columns.
        correlated: Share of the last two whose columns are nodes of a causal model, not independent.
        clusters: Share of tables whose rows belong to clusters.
        irrelevant: Share of columns that the target does not depend on.
        noise: Smallest and largest standard deviation of the noise of nodes and scores.
        imbalance: Largest standard deviation of the logarithm of the classes' frequencies.
        ordered: Share of tables whose classes are intervals of one score.
        flipped: Largest share of random labels.
        redundant: Share of columns that are a noisy copy of another.
        skewed: Share of columns with a skewed scale.
        rounded: Share of columns that are rounded.
        categories: Share of columns that are categories.
        gaps: Share of tables with gaps.
    """

    kind: ClassVar[str] = "classification"
    modality: ClassVar[str] = "table"
    metric: ClassVar[str] = "accuracy"

    def __init__(
        self,
        seed: int,
        *,
        way: Count,
        columns: Sequence[Positive],
        least_shot: Positive,
        shot: Positive,
        query: Positive,
        together: Positive,
        causal: NonNegative,
        networks: NonNegative,
        trees: NonNegative,
        correlated: Fraction,
        clusters: Fraction,
        irrelevant: Fraction,
        noise: Sequence[Rate],
        imbalance: NonNegative,
        ordered: Fraction,
        flipped: Fraction,
        redundant: Fraction,
        skewed: Fraction,
        rounded: Fraction,
        categories: Fraction,
        gaps: Fraction,
    ) -> None:
        for name, pair in {"columns": columns, "noise": noise}.items():
            require(
                len(pair) == 2 and pair[0] <= pair[1],
                f"task.{name}={[*pair]}: two numbers are needed, the smallest and the largest",
            )
        require(way != 1, "task.way=1: a table has at least 2 classes")
        require(
            columns[1] + max(way, 1) <= UNITS,
            f"task.columns={[*columns]} task.way={way}: columns and classes can be at most {UNITS} together",
        )
        require(causal + networks + trees > 0, "task.causal, task.networks and task.trees are all 0: one must be more")
        require(
            skewed + rounded + categories <= 1,
            "task.skewed + task.rounded + task.categories is more than 1, and a column is one of them at most",
        )
        self.seed, self.column_range, self.least_shot, self.together = seed, columns, least_shot, together
        self.kinds = np.array([causal, networks, trees]) / (causal + networks + trees)
        self.correlated, self.clusters, self.irrelevant, self.noise = correlated, clusters, irrelevant, noise
        self.imbalance, self.ordered, self.flipped = imbalance, ordered, flipped
        self.effects = Effects(redundant, skewed, rounded, categories, gaps)
        self.shape: EpisodeShape = EpisodeShape(way, shot, query)
        self.spec = Spec("classification" if way else "regression", self.modality, (columns[1],), max(way, 1))
        self.tested_together = together if least_shot < shot or columns[0] < columns[1] else 1
        self.check("test", self.shape)

    def check(self, split: Split, shape: EpisodeShape) -> None:
        require(
            self.least_shot <= shape.shot,
            f"task.least_shot={self.least_shot} is more than the {shape.shot} support rows of an episode",
        )
        require(
            shape.way <= self.least_shot,
            f"task.least_shot={self.least_shot} rows cannot hold a row of each of the {shape.way} classes",
        )

    def counts(self, split: Split, indices: Sequence[int], shape: EpisodeShape) -> tuple[int, int]:
        """Return the numbers of support rows and of columns of these tasks."""
        rows, columns = (
            shared_count(self.seed, split, indices, *pair, together=self.together, stream=stream)
            for stream, pair in ((3, (self.least_shot, shape.shot)), (4, (self.column_range[0], self.column_range[1])))
        )
        return rows, columns

    def latent(self, draws: Draws, rows: int, columns: int, outputs: int) -> tuple[Array, Array]:
        """Return standardised columns [T, R, C] and the scores [T, R, outputs] of their target, with noise."""
        u = draws.uniform(5)
        kind = (u[:, :1] > self.kinds.cumsum()[:2]).sum(1)[:, None, None]
        noise = log_range(u[:, 1], *self.noise)[:, None, None]
        depth = between(u[:, 2] ** 2, 1, LAYERS)
        causes = roots(draws, rows, self.clusters)
        own = noise[..., None] * draws.normal(rows, LAYERS, UNITS)
        # Few of the causes have effects, so that the columns can tell much of the target.
        acting = np.arange(UNITS) < between(u[:, 4:], 1, columns // 2 + 2)
        nodes = Networks.draw(draws).units(causes * acting[:, None], own).reshape(*causes.shape[:2], -1)
        found = choose(draws.uniform(columns + outputs), UNITS * depth)
        independent = (u[:, 3, None, None] >= self.correlated) & (kind > 0)
        x = standardised(np.where(independent, causes[..., :columns], pick(nodes, found[:, :columns])))
        v = draws.uniform(columns)[:, None]
        relevant = (v >= self.irrelevant) | (v == v.max(2, keepdims=True))
        inputs = x * relevant
        layer = np.take_along_axis(Networks.draw(draws).units(inputs), (depth - 1)[:, None, None, None], 2)[:, :, 0]
        targets = [pick(nodes, found[:, columns:]), layer[..., :outputs], tree_scores(draws, inputs, outputs)]
        scores = standardised(np.choose(np.broadcast_to(kind, targets[0].shape), targets))
        x = np.where((kind > 0) | relevant, x, draws.normal(rows, columns))
        return x, scores + noise * draws.normal(rows, outputs)

    def batch(self, split: Split, indices: Sequence[int], shape: EpisodeShape | None = None) -> TaskBatch:
        shape = shape or self.shape
        shot, columns = self.counts(split, indices, shape)
        draws = Draws(self.seed, split, indices)
        clean, scores = self.latent(draws, shot + shape.query, columns, max(shape.way, 1))
        changed = to_device(self.effects.apply(draws, clean), self.device, torch.get_default_dtype())
        x, y = self.targets(draws, changed, scores, shape.way)
        return TaskBatch(Labelled(x[:, :shot], y[:, :shot], shape.way), Labelled(x[:, shot:], y[:, shot:], shape.way))

    def targets(self, draws: Draws, x: Tensor, scores: Array, way: int) -> tuple[Tensor, Tensor]:
        """Return the rows [T, R, C] in the order of their use, and their targets: classes [T, R], or values [T, R, 1].

        Args:
            draws: Random numbers.
            x: The rows.
            scores: Scores of the target, [T, R, K].
            way: Largest number of classes, 0 in regression.
        """
        y = classes(draws, scores, most=way, imbalance=self.imbalance, ordered=self.ordered, flipped=self.flipped)
        order = first_of_each(y)
        place = to_device(order, self.device)[..., None].expand_as(x)
        return x.gather(1, place), to_device(np.take_along_axis(y, order, 1), self.device)

    def protocol(self) -> dict[str, Any]:
        return {
            "data": "synthetic tables",
            **({"way": f"at most {self.shape.way}"} if self.shape.way else {}),
            "columns": [*self.column_range],
            "shot": [self.least_shot, self.shape.shot],
            "query": self.shape.query,
        }


class TableRegressionPrior(TablePrior):
    """Regression on rows of synthetic tables: the target is the score of which :class:`TablePrior` makes classes.

    Args:
        seed: Seed of the tables.
        columns: Smallest and largest number of columns.
        least_shot: Smallest number of support rows.
        shot: Largest number of support rows.
        query: Query rows of a table.
        together: Number of consecutive tasks that share their numbers of rows and columns.
        causal: Weight of tables whose target is a node of a structural causal model.
        networks: Weight of tables whose target is a network of the columns.
        trees: Weight of tables whose target is a sum of trees of the columns.
        correlated: Share of the last two whose columns are nodes of a causal model, not independent.
        clusters: Share of tables whose rows belong to clusters.
        irrelevant: Share of columns that the target does not depend on.
        noise: Smallest and largest standard deviation of the noise of nodes and targets.
        redundant: Share of columns that are a noisy copy of another.
        skewed: Share of columns with a skewed scale.
        rounded: Share of columns that are rounded.
        categories: Share of columns that are categories.
        gaps: Share of tables with gaps.
    """

    kind: ClassVar[str] = "regression"
    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self,
        seed: int,
        *,
        columns: Sequence[Positive],
        least_shot: Positive,
        shot: Positive,
        query: Positive,
        together: Positive,
        causal: NonNegative,
        networks: NonNegative,
        trees: NonNegative,
        correlated: Fraction,
        clusters: Fraction,
        irrelevant: Fraction,
        noise: Sequence[Rate],
        redundant: Fraction,
        skewed: Fraction,
        rounded: Fraction,
        categories: Fraction,
        gaps: Fraction,
    ) -> None:
        super().__init__(
            seed, way=0, columns=columns, least_shot=least_shot, shot=shot, query=query, together=together,
            causal=causal, networks=networks, trees=trees, correlated=correlated, clusters=clusters,
            irrelevant=irrelevant, noise=noise, imbalance=0, ordered=1, flipped=0, redundant=redundant, skewed=skewed,
            rounded=rounded, categories=categories, gaps=gaps,
        )  # fmt: skip

    def targets(self, draws: Draws, x: Tensor, scores: Array, way: int) -> tuple[Tensor, Tensor]:
        return x, to_device(scores, self.device, torch.get_default_dtype())
