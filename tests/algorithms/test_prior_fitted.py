"""Prior-fitted networks: the loss, what predictions depend on, averaging over labels, the area under the curve."""

from __future__ import annotations

from collections.abc import Iterator
from math import log, pi
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.algorithms.amortised.prior_fitted import PriorFitted, auc
from metarun.config.build import construct
from metarun.config.catalogue import entry
from metarun.models.table_features import CLIP, cell_features
from metarun.models.table_transformer import FLOOR, TableTransformer
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch

CLASSES = Spec("classification", "table", (4,), 3)
VALUES = Spec("regression", "table", (4,), 2)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(spec: Spec = CLASSES, model: nn.Module | None = None, joint: bool = True, **changes: Any) -> PriorFitted:
    torch.manual_seed(0)
    found = entry("algorithm", "prior_fitted")
    assert found is not None
    section = {**found.section, "decay_over": None, **changes}
    own = TableTransformer(spec, width=8, layers=2, row_width=12, row_layers=1, heads=2, joint=joint)
    return construct(section, model=model or own, spec=spec)


def tables(spec: Spec = CLASSES, tasks: int = 2, rows: int = 9, asked: int = 5) -> TaskBatch:
    torch.manual_seed(1)
    x = torch.randn(tasks, rows + asked, 4)
    x[torch.rand_like(x) < 0.1] = torch.nan
    if spec.kind == "regression":
        y = torch.randn(tasks, rows + asked, spec.output_size)
    else:
        y = torch.stack([torch.arange(rows + asked) % way for way in (2, 3)[:tasks]])
    return TaskBatch(Labelled(x[:, :rows], y[:, :rows], 3), Labelled(x[:, rows:], y[:, rows:], 3))


def test_cells_are_standardised_by_the_support_rows() -> None:
    """Against a loop over the values of each column."""
    batch = tables()
    found = cell_features(batch.support.x, batch.query.x)
    for t in range(2):
        for c in range(4):
            support = [v for v in batch.support.x[t, :, c].tolist() if v == v]
            mean = sum(support) / len(support)
            deviation = (sum((v - mean) ** 2 for v in support) / len(support)) ** 0.5
            for r, v in enumerate([*batch.support.x[t, :, c].tolist(), *batch.query.x[t, :, c].tolist()]):
                if v != v:
                    assert found[t, r, c].tolist() == [0, 0, 1]
                    continue
                z = max(-CLIP, min(CLIP, (v - mean) / deviation))
                place = sum((v > s) + (v >= s) for s in support) / len(support) - 1
                assert found[t, r, c].tolist() == pytest.approx([z, place, 0], abs=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cells_do_not_depend_on_the_unit(scale: float) -> None:
    x, queries = torch.randn(1, 6, 2).float(), torch.randn(1, 3, 2).float()
    torch.testing.assert_close(cell_features(scale * x, scale * queries), cell_features(x, queries))


def test_columns_without_values_or_variation_are_finite() -> None:
    x = torch.tensor([[[torch.nan, 5.0], [torch.nan, 5.0]]])
    found = cell_features(x, torch.tensor([[[1.0, 7.0]]]))
    assert torch.isfinite(found).all()
    assert found[0, 2, 0].tolist() == [0, 0, 0]
    assert found[0, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("spec", [CLASSES, VALUES])
def test_the_order_of_columns_and_of_support_rows_does_not_matter(spec: Spec) -> None:
    algorithm, batch = learner(spec), tables(spec)
    support, query = batch.support, batch.query.x
    expected = algorithm.adapt(support)(query)
    columns, rows = torch.tensor([2, 0, 3, 1]), torch.randperm(9)
    permuted = Labelled(support.x[:, rows][..., columns], support.y[:, rows], 3)
    torch.testing.assert_close(algorithm.adapt(permuted)(query[..., columns]), expected, rtol=0, atol=1e-12)


def test_a_query_row_depends_on_the_support_rows_alone() -> None:
    algorithm, batch = learner(), tables()
    adapted = algorithm.adapt(batch.support)
    alone = torch.cat([adapted(batch.query.x[:, i : i + 1]) for i in range(5)], 1)
    torch.testing.assert_close(alone, adapted(batch.query.x), rtol=0, atol=1e-12)
    changed = batch.support.map(lambda values: values.clone())
    changed.x[:, 0] += 1
    assert not torch.allclose(algorithm.adapt(changed)(batch.query.x), adapted(batch.query.x))


def plain_attention(own: Any, asking: Tensor, known: Tensor) -> Tensor:
    """Attention of tokens [N, W] to tokens [M, W], head by head."""
    q, k, v = (layer(own.before(part)) for layer, part in ((own.query, asking), (own.key, known), (own.value, known)))
    size = q.shape[-1] // own.heads
    heads = []
    for h in range(own.heads):
        part = slice(h * size, (h + 1) * size)
        heads.append(torch.softmax(q[:, part] @ k[:, part].T / size**0.5, -1) @ v[:, part])
    return own.out(torch.cat(heads, -1))


def near_labels(model: TableTransformer, features: Tensor, y: Tensor, r: int, c: int) -> Tensor:
    """Labels of the support rows near cell (r, c) of a table, embedded."""
    found = []
    for a, b in model.near.log_rates.exp().T.tolist():
        weights = torch.zeros(len(y))
        for s in range(len(y)):
            z, quantile, _ = (features[r, c] - features[s, c]).tolist()
            gap = features[s, c, 2].item()
            weights[s] = 0 if s == r or gap else torch.tensor(-a * quantile**2 - b * z**2).exp()
        found.append(weights / weights.sum() @ y - y.mean(0))
    return model.near.embed(torch.cat(found))


def near_rows(rates: Tensor, features: Tensor, r: int) -> Tensor:
    """Nearness of support rows to row ``r`` of a table, [kernels, 9]: minus the weighted squares, cell by cell."""
    found = torch.zeros(len(rates), 9)
    for k, weights in enumerate(rates.tolist()):
        for s in range(9):
            for cell, other in zip(features[r], features[s], strict=True):
                found[k, s] -= sum(
                    w * (a - b) ** 2 for w, a, b in zip(weights, cell.tolist(), other.tolist(), strict=True)
                )
    return found


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("spec", [CLASSES, VALUES])
def test_the_transformer_against_one_written_out(spec: Spec, joint: bool) -> None:
    """Row by row and column by column."""
    model, batch = learner(spec, joint=joint).model, tables(spec)
    assert isinstance(model, TableTransformer)
    labels = batch.support.y if spec is VALUES else F.one_hot(batch.support.y, 3).double()
    found = model(batch.support.x, labels, batch.query.x)
    for t in range(2):
        features = cell_features(batch.support.x, batch.query.x)[t]
        near = [[near_labels(model, features, labels[t], r, c) for c in range(4)] for r in range(14)]
        cells = model.cells(features) + torch.stack([torch.stack(row) for row in near])
        last = torch.cat([model.labels(labels[t]), model.question.expand(5, -1)])
        for r in range(14 if joint else 0):
            assert model.near_rows is not None
            weights = near_rows(model.near_rows.log_rates.exp(), features, r).exp()
            weights[:, r : r + 1] = 0  # a support row leaves itself out
            means = weights @ labels[t] / weights.sum(1, keepdim=True) - labels[t].mean(0)
            last[r] = last[r] + model.near_rows.embed(means.flatten())
        tokens = torch.cat([cells, last[:, None]], 1)
        for block in model.blocks:
            label = torch.stack([row[-1:] + plain_attention(block.along_columns, row[-1:], row) for row in tokens])
            tokens = label if block.spread is None else torch.cat([tokens[:, :-1] + block.spread(label), label], 1)
            columns = range(tokens.shape[1])
            change = [plain_attention(block.along_rows, tokens[:, c], tokens[:9, c]) for c in columns]
            tokens = tokens + torch.stack(change, 1)
            tokens = tokens + block.units(tokens)
        rows = model.rows(tokens[:, -1])
        for block in model.row_blocks:
            rows = rows + plain_attention(block.along_rows, rows, rows[:9])
            rows = rows + block.units(rows)
        q, k = model.recall.query(model.recall.before(rows[9:])), model.recall.key(model.recall.before(rows[:9]))
        logits = torch.stack([q[:, h] @ k[:, h].T / 6**0.5 for h in (slice(6), slice(6, None))])
        if model.recall.log_rates is not None:
            rates = model.recall.log_rates.exp()
            logits = logits + torch.stack([near_rows(rates, features, r) for r in range(9, 14)], 1)
        heads = logits.softmax(-1)
        recalled = (heads[0] + heads[1]) / 2 @ labels[t]
        expected = model.head(rows[9:])
        if spec is CLASSES:
            expected = expected + torch.log(recalled + FLOOR)
        else:
            expected = torch.cat([expected[:, :2] + recalled, expected[:, 2:]], -1)
        torch.testing.assert_close(found[t], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spec", [CLASSES, VALUES])
def test_gradients_against_finite_differences(spec: Spec) -> None:
    algorithm, batch = learner(spec), tables(spec)
    loss, _ = algorithm.outer_loss(batch)
    loss.backward()
    torch.manual_seed(2)
    step = 1e-6
    for name, parameter in algorithm.named_parameters():
        direction = torch.randn_like(parameter)
        assert parameter.grad is not None, name
        slope = float((parameter.grad * direction).sum())
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step * direction)
                ends.append(float(algorithm.outer_loss(batch)[0]))
                parameter.sub_(sign * step * direction)
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-7), name


class Fixed(nn.Module):
    """Logits 0, 1, 2, ... of the labels, whatever the rows; or mean 1/2 and deviation softplus(raw) + .001."""

    role = "in_context"

    def __init__(self, outputs: int, raw: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = nn.Parameter(torch.ones(()))
        self.raw = raw

    def forward(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        if self.raw:
            ones = torch.ones(*queries.shape[:2], self.outputs)
            return self.scale * torch.cat([0.5 * ones, self.raw * ones], -1)
        return self.scale * torch.arange(float(self.outputs)).expand(*queries.shape[:2], -1)


@pytest.mark.parametrize("permutations", [1, 2, 3])
def test_probabilities_are_averaged_over_cyclic_permutations(permutations: int) -> None:
    """Each class takes the labels of its shifts in turn, among the classes of its own table."""
    batch = tables()
    found = learner(model=Fixed(3), permutations=permutations).adapt(batch.support)(batch.query.x).softmax(-1)
    for t, way in enumerate((2, 3)):
        p = torch.arange(float(way)).softmax(0)
        expected = [sum(float(p[(c + s) % way]) for s in range(permutations)) / permutations for c in range(way)]
        assert found[t, 0, :way].tolist() == pytest.approx(expected)
        assert found[t, :, way:].sum().item() == pytest.approx(0, abs=1e-12)


def test_all_permutations_treat_classes_alike() -> None:
    algorithm, batch = learner(permutations=3), tables()
    support, query = batch.support, batch.query.x
    three = Labelled(support.x[1:], support.y[1:], 3)
    shifted = Labelled(three.x, (three.y + 1) % 3, 3)
    expected = algorithm.adapt(three)(query[1:]).softmax(-1)
    torch.testing.assert_close(algorithm.adapt(shifted)(query[1:]).softmax(-1).roll(-1, -1), expected)


def test_regression_is_a_gaussian_of_standardised_targets() -> None:
    batch = tables(VALUES)
    algorithm = learner(VALUES, model=Fixed(2, raw=0.7))
    loss = algorithm.outer_loss(batch)[0].item()
    total = []
    for t in range(2):
        for d in range(2):
            known = batch.support.y[t, :, d]
            centre, scale = known.mean(), known.std(correction=0)
            mean, std = centre + 0.5 * scale, scale * (0.001 + log(1 + 2.718281828459045**0.7))
            for y in batch.query.y[t, :, d]:
                total.append(float(0.5 * ((y - mean) / std) ** 2 + torch.log(std) + 0.5 * log(2 * pi)))
    assert loss == pytest.approx(sum(total) / len(total))
    assert algorithm.evaluate(batch)["mse"].shape == (2, 1)


def test_area_under_the_curve_counts_pairs() -> None:
    """One class against the rest, ties half, averaged over the classes that some rows have and some have not."""
    torch.manual_seed(0)
    scores, y = torch.randint(0, 4, (3, 12, 4)).double(), torch.randint(0, 3, (3, 12))
    y[2] = 1
    for t in range(3):
        areas = []
        for k in range(4):
            inside, outside = scores[t, y[t] == k, k], scores[t, y[t] != k, k]
            if len(inside) and len(outside):
                pairs = [(a > b) + 0.5 * (a == b) for a in inside.tolist() for b in outside.tolist()]
                areas.append(sum(pairs) / len(pairs))
        assert float(auc(scores, y)[t]) == pytest.approx(sum(areas) / len(areas) if areas else 0.5)


def test_it_takes_no_more_classes_than_outputs() -> None:
    algorithm = learner()
    assert [algorithm.accepts(EpisodeShape(way, 5, 5)) for way in (2, 3, 4)] == [True, True, False]
