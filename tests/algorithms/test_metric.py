"""Metric and closed-form heads, in float64, against loops written out by hand and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.metric.head import Head
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.algorithms.metric.metaoptnet import crammer_singer
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.norm import BatchNorm
from metarun.tasks.episode import EpisodeShape, Labelled, Spec, TaskBatch
from tests.composed import composed

WAY, SHOT, QUERY, TASKS, WIDTH = 3, 2, 4, 2, 6
SPEC = Spec("classification", "vector", (WIDTH,), WAY)


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def section(name: str, *overrides: str) -> dict[str, Any]:
    return composed(f"algorithm={name}", *(f"algorithm.{o}" for o in overrides))["algorithm"]


def head(name: str, *overrides: str, shape: tuple[int, ...] = (WIDTH,), spec: Spec = SPEC) -> Head:
    torch.manual_seed(0)
    made = construct(section(name, *(f"head.{o}" for o in overrides))["head"])
    made.prepare(shape, spec)
    return made.double()


def episodes(shape: tuple[int, ...] = (WIDTH,), shot: int = SHOT, scale: float = 1.0) -> tuple[Labelled, Labelled]:
    """Features of support and query sets, whose rows are in no order."""
    noise = torch.Generator().manual_seed(1)
    centre = torch.randn(TASKS, WAY, *shape, generator=noise)
    drawn = []
    for each in (shot, QUERY):
        y = torch.stack([torch.arange(WAY * each)[torch.randperm(WAY * each, generator=noise)] % WAY
                         for _ in range(TASKS)])  # fmt: skip
        x = torch.stack([centre[t][y[t]] for t in range(TASKS)])
        drawn.append(Labelled(scale * (x + torch.randn(*x.shape, generator=noise)), y, WAY))
    return drawn[0], drawn[1]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def finite_difference_error(function: Any, at: Tensor) -> float:
    """Of ``function``'s gradient along three random directions, relative to central differences."""
    at = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(function(at), at)
    worst = 0.0
    for seed in range(3):
        direction = torch.randn(at.shape, generator=torch.Generator().manual_seed(seed))
        h = 1e-6
        with torch.no_grad():
            expected = float(function(at + h * direction) - function(at - h * direction)) / (2 * h)
        worst = max(worst, abs(float((gradient * direction).sum()) - expected) / abs(expected))
    return worst


# Prototypes


@pytest.mark.parametrize("features", ["none", "l2", "centred_l2"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_prototypes(distance: str, features: str) -> None:
    made = head("protonet", f"distance={distance}", "scale=3", "learn_scale=true", f"features={features}")
    made.observe(torch.arange(2.0 * WIDTH).view(2, WIDTH))
    made.observe(torch.ones(4, WIDTH))
    mean = (torch.arange(2.0 * WIDTH).view(2, WIDTH).mean(0) + 1) / 2

    def transformed(v: Tensor) -> Tensor:
        if features == "none":
            return v
        v = v - mean if features == "centred_l2" else v
        return v / v.norm()

    support, query = episodes()
    found = made.fit(support)(query.x).log_softmax(-1)
    for t in range(TASKS):
        centres = []
        for c in range(WAY):
            members = [transformed(x) for x, y in zip(support.x[t], support.y[t], strict=True) if y == c]
            centres.append(sum(members) / len(members))
        for n in range(WAY * QUERY):
            q = transformed(query.x[t, n])
            if distance == "euclidean":
                logits = torch.stack([-3 * ((q - c) ** 2).sum() for c in centres])
            else:
                logits = torch.stack([3 * (q @ c) / (q.norm() * c.norm()) for c in centres])
            assert close(found[t, n], logits.log_softmax(0))
    loss = made.loss(support, query, made.fit(support)(query.x))
    (by_scale,) = torch.autograd.grad(loss, list(made.parameters()))
    assert by_scale.abs() > 1e-3


# Matching Networks


def test_matching_averages_labels_by_attention() -> None:
    made = head("matching", "scale=2", "learn_scale=false")
    support, query = episodes()
    found = made.fit(support)(query.x).exp()
    for t in range(TASKS):
        for n in range(WAY * QUERY):
            q, probability = query.x[t, n], torch.zeros(WAY)
            weights = torch.stack([(2 * torch.cosine_similarity(q, x, dim=0)).exp() for x in support.x[t]])
            for weight, y in zip(weights / weights.sum(), support.y[t], strict=True):
                probability[y] += weight
            assert close(found[t, n], probability)


def test_full_context_embeddings_are_those_of_torchs_lstm() -> None:
    """Support: torch's bidirectional LSTM plus the features. Query: attLSTM by torch's cell, with its weights."""
    made = head("matching_fce", "context_steps=3")
    support, query = episodes()
    lstm = nn.LSTM(WIDTH, WIDTH, bidirectional=True, batch_first=True)
    with torch.no_grad():
        for cell, end in ((made.forwards, ""), (made.backwards, "_reverse")):
            getattr(lstm, f"weight_ih_l0{end}").copy_(cell.inputs.weight)
            getattr(lstm, f"weight_hh_l0{end}").copy_(cell.back.weight)
            getattr(lstm, f"bias_ih_l0{end}").copy_(cell.inputs.bias)
            getattr(lstm, f"bias_hh_l0{end}").zero_()
        both = lstm(support.x)[0]
        g = support.x + both[..., :WIDTH] + both[..., WIDTH:]
        assert close(made.support_in_context(support.x), g)

        # [h, r] -> gates: torch's cell has the matrix for h; that for r is put with its input.
        att = nn.LSTMCell(2 * WIDTH, WIDTH)
        att.weight_ih.copy_(torch.cat([made.attending.inputs.weight, made.attending.back.weight[:, WIDTH:]], 1))
        att.weight_hh.copy_(made.attending.back.weight[:, :WIDTH])
        att.bias_ih.copy_(made.attending.inputs.bias)
        att.bias_hh.zero_()
        f = made.query_in_context(query.x, g)
        for t in range(TASKS):
            for n in range(WAY * QUERY):
                x = query.x[t, n]
                h, c, r = torch.zeros(WIDTH), torch.zeros(WIDTH), torch.zeros(WIDTH)
                for _ in range(3):
                    out, c = (v[0] for v in att(torch.cat([x, r])[None], (h[None], c[None])))
                    h = out + x
                    r = (g[t] @ h).softmax(0) @ g[t]
                assert close(f[t, n], h)
    assert not close(f, query.x)


# Relation Networks


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 1, 1), (WIDTH,)])
def test_relation_compares_every_pair(shape: tuple[int, ...]) -> None:
    """By one convolution of both maps, one upon the other, and by torch's own batch norm over all pairs of a task."""
    made = head("relation", "width=4", shape=shape)
    support, query = episodes(shape)
    found = made.fit(support)(query.x)
    weight = torch.cat([made.on_class.weight, made.on_query.weight], 1)
    for t in range(TASKS):
        sums = [sum(x for x, y in zip(support.x[t], support.y[t], strict=True) if y == c) for c in range(WAY)]
        pairs = torch.stack([torch.cat([s, q]) for q in query.x[t] for s in sums])
        if len(shape) == 1:
            hidden = (pairs @ weight.T + made.on_class.bias).relu()
        else:
            hidden = pairs
            for kernel in (weight, made.conv.weight):
                hidden = nn.functional.conv2d(hidden, kernel, padding=1)
                hidden = nn.BatchNorm2d(4)(hidden).relu()
                hidden = nn.functional.max_pool2d(hidden, 2) if shape[1] > 1 else hidden
        last = made.judge[2](made.judge[0](hidden.flatten(1)).relu()).view(-1, WAY)
        assert torch.allclose(found[t], last, atol=1e-10)
    squares = [(found[t, n, c].sigmoid() - float(query.y[t, n] == c)) ** 2
               for t in range(TASKS) for n in range(WAY * QUERY) for c in range(WAY)]  # fmt: skip
    assert close(made.loss(support, query, found), sum(squares) / len(squares))  # type: ignore[arg-type]


def test_relation_cannot_normalise_by_the_support_set() -> None:
    spec = Spec("classification", "image", (1, 8, 8), WAY)
    model = construct(composed("model.width=4", "model.depth=2")["model"], spec=spec)
    with pytest.raises(UserError, match=r"algorithm\.norm=support"):
        construct(section("relation", "norm=support"), model=model, spec=spec)


@pytest.mark.parametrize("norm", ["support", "transductive"])
def test_whose_statistics_normalise_a_query(norm: str) -> None:
    """Under ``support`` those of the support set alone, whatever is asked beside it; else those of all together."""
    model = nn.Sequential(nn.Linear(WIDTH, 4), BatchNorm(4))
    learner = construct(section("protonet", f"norm={norm}", "train_way=null"), model=model, spec=SPEC)
    support, query = episodes()
    answer = learner.adapt(support)
    assert close(answer(query.x)[:, :1], answer(query.x[:, :1])) == (norm == "support")
    seen = model[0](torch.cat([support.x[0], query.x[0]]))
    by = seen[: WAY * SHOT] if norm == "support" else seen
    expected = (seen - by.mean(0)) / (by.var(0, correction=0) + 1e-5).sqrt()
    assert close(torch.cat([part[0] for part in learner.together(support.x, query.x)]), expected)


# R2-D2


@pytest.mark.parametrize("shot", [1, 4])  # fewer examples than features, and more
@pytest.mark.parametrize("bias", [True, False])
def test_ridge_is_least_squares_with_penalty_rows(shot: int, bias: bool) -> None:
    """The penalty as further examples, sqrt(penalty) e_i with target 0, in an ordinary least-squares problem."""
    made = head("r2d2", "penalty=0.7", "scale=5", f"bias={bias}")
    support, query = episodes(shot=shot)
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        x, q = support.x[t], query.x[t]
        if bias:
            x, q = (torch.cat([v, torch.ones(len(v), 1)], 1) for v in (x, q))
        y = torch.stack([(support.y[t] == c).double() for c in range(WAY)], 1)
        rows = torch.cat([x, 0.7**0.5 * torch.eye(x.shape[1])])
        weights = torch.linalg.lstsq(rows, torch.cat([y, torch.zeros(x.shape[1], WAY)])).solution
        assert close(found[t], 5 * q @ weights)


def test_ridge_regresses() -> None:
    made = head("r2d2", "penalty=1e-9", "bias=true", spec=replace(SPEC, kind="regression", output_size=2))
    x, weights = torch.randn(1, 20, WIDTH), torch.randn(WIDTH, 2)
    answer = made.fit(Labelled(x, x @ weights - 3))
    q = torch.randn(1, 5, WIDTH)
    assert torch.allclose(answer(q), q @ weights - 3, atol=1e-6)


def test_newton_finds_the_logistic_optimum() -> None:
    """After enough steps the gradient of each class's penalised loss vanishes, and one step is as defined."""
    penalty = 0.5
    made = head("r2d2_logistic", f"penalty={penalty}", "scale=1", "bias=false", "steps=30")
    support, _ = episodes()
    weights = made.fit(support)(torch.eye(WIDTH).expand(TASKS, -1, -1))  # [T, F, way]
    for t in range(TASKS):
        for c in range(WAY):
            w = weights[t, :, c].detach().requires_grad_()
            y = (support.y[t] == c).double()
            loss = nn.functional.binary_cross_entropy_with_logits(support.x[t] @ w, y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss + penalty / 2 * w @ w, w)
            assert gradient.abs().max() < 1e-9

    once = head("r2d2_logistic", f"penalty={penalty}", "scale=1", "bias=false", "steps=2")
    found = once.fit(support)(torch.eye(WIDTH).expand(TASKS, -1, -1))
    for t in range(TASKS):
        for c in range(WAY):
            w, x, y = torch.zeros(WIDTH), support.x[t], (support.y[t] == c).double()
            for _ in range(2):  # w - H^-1 g
                mu = (x @ w).sigmoid()
                hessian = x.T @ torch.diag(mu * (1 - mu)) @ x + penalty * torch.eye(WIDTH)
                w = w - torch.linalg.solve(hessian, x.T @ (mu - y) + penalty * w)
            assert close(found[t, :, c], w)


# Gradients through every solver, and of whole learners

SOLVERS = ["r2d2", "r2d2_logistic", "metaoptnet", "matching_fce", "softkmeans", "tim", "bdcspn", "ptmap", "feat"]


@pytest.mark.parametrize("name", SOLVERS)
def test_gradients_by_support_query_and_parameters(name: str) -> None:
    keys = {
        "r2d2": ["penalty=2"],
        "r2d2_logistic": ["penalty=2"],
        "metaoptnet": ["smoothing=0.1"],
        "feat": ["dropout=0"],
        "tim": ["refine.steps=3"],
        "ptmap": ["refine.steps=3"],
    }
    made = head(name, *keys.get(name, []))
    support, query = episodes(shot=4 if name == "metaoptnet" else SHOT)

    def loss(x: Tensor, q: Tensor) -> Tensor:
        s, others = replace(support, x=x), replace(query, x=q)
        return made.loss(s, others, made.fit(s)(q))

    assert finite_difference_error(lambda x: loss(x, query.x), support.x) < 1e-6
    assert finite_difference_error(lambda q: loss(support.x, q), query.x) < 1e-6
    for key, p in made.named_parameters():
        owner, _, last = key.rpartition(".")
        holder = made.get_submodule(owner)

        def by(value: Tensor, holder: Any = holder, last: str = last) -> Tensor:
            kept = holder._parameters[last]
            holder._parameters[last] = value
            found = loss(support.x, query.x)
            holder._parameters[last] = kept
            return found

        assert finite_difference_error(by, p) < 1e-6, key


LEARNERS = ["protonet", "matching", "matching_fce", "relation", "r2d2", "r2d2_logistic", "metaoptnet", "feat"]


class Plain(nn.Module):
    """A linear embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    learner = construct(section(name, "outer_lr=0.02", "norm=transductive"), model=Plain(), spec=SPEC)
    assert isinstance(learner, EmbeddingLearner)
    batch = TaskBatch(*episodes())
    losses = [float(learner.meta_step(batch, i)["loss"]) for i in range(40)]
    assert losses[-1] < 0.6 * losses[0]
    judged = learner.evaluate(batch)
    assert judged["accuracy"].shape == (TASKS, 1)


# MetaOptNet


@pytest.mark.parametrize(("shot", "scale", "cost"), [(1, 1.0, 0.1), (4, 1.0, 0.1), (4, 3.0, 5.0)])
def test_the_svm_has_no_duality_gap(shot: int, scale: float, cost: float) -> None:
    """Its weights reach in the primal what the dual proves to be the least: 1/2 |w|^2 and the hinge losses.

    The ridge is another feature for every example, which it alone has.
    """
    support, query = episodes(shot=shot, scale=scale)
    x, y, ridge = support.x, support.y, 0.3
    one_hot = nn.functional.one_hot(y, WAY).double()
    dual = crammer_singer(x @ x.transpose(1, 2), one_hot, cost, ridge, 15)
    found = head("metaoptnet", f"cost={cost}", f"ridge={ridge}", "scale=2").fit(support)(query.x)
    assert close(found, 2 * query.x @ x.transpose(1, 2) @ dual)
    for t in range(TASKS):
        wider = torch.cat([x[t], ridge**0.5 * torch.eye(len(x[t]))], 1)
        weights = wider.T @ dual[t]
        hinge = 0.0
        for n in range(len(y[t])):
            scores = wider[n] @ weights
            hinge += max(float(scores[c] - scores[y[t, n]]) + int(c != y[t, n]) for c in range(WAY))
        primal = 0.5 * float(weights.square().sum()) + cost * hinge
        reached = float(dual[t].gather(1, y[t][:, None]).sum()) - 0.5 * float(weights.square().sum())
        assert abs(primal - reached) < 1e-7 * abs(primal)
        slack = cost * one_hot[t] - dual[t]
        assert slack.min() > -1e-12
        assert dual[t].sum(1).abs().max() < 1e-12
        assert shot == 1 or bool((slack < 1e-6).any())  # with more examples some bounds are active


def test_labels_of_the_svms_query_loss_are_smoothed() -> None:
    made = head("metaoptnet", "smoothing=0.3")
    support, query = episodes()
    prediction = torch.randn(TASKS, WAY * QUERY, WAY)
    logp = prediction.log_softmax(-1)
    right = logp.gather(-1, query.y[..., None])[..., 0]
    assert close(made.loss(support, query, prediction), -(0.7 * right + 0.3 * logp.mean(-1)).mean())


def test_more_steps_of_the_svms_solver_change_nothing() -> None:
    support, query = episodes(shot=4)
    few, many = (head("metaoptnet", f"steps={n}").fit(support)(query.x) for n in (15, 40))
    assert torch.allclose(few, many, rtol=0, atol=1e-9)


# FEAT


def test_set_to_set_is_torchs_attention() -> None:
    made = head("feat", "dropout=0", "contrast=0.3", "scale=0.5", "contrast_scale=0.7", "learn_scale=false")
    support, query = episodes()
    attention = nn.MultiheadAttention(WIDTH, 1, bias=True, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([f.weight for f in (made.asks, made.offers, made.values)]))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(made.out.weight)
        attention.out_proj.bias.copy_(made.out.bias)

    def transformed(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x + attention(x[None], x[None], x[None])[0][0], (WIDTH,))

    found = made.fit(support)(query.x)
    loss = made.loss(support, query, found)
    expected = 0.0
    for t in range(TASKS):
        mine = [support.x[t][support.y[t] == c] for c in range(WAY)]
        centres = transformed(torch.stack([m.mean(0) for m in mine]))
        logits = -0.5 * (query.x[t][:, None] - centres).square().sum(-1)
        assert close(found[t].log_softmax(-1), logits.log_softmax(-1))
        everything = [torch.cat([mine[c], query.x[t][query.y[t] == c]]) for c in range(WAY)]
        contrasted = torch.stack([transformed(each).mean(0) for each in everything])
        second = [-0.7 * (torch.cat(everything)[:, None] - contrasted).square().sum(-1)]
        labels = torch.arange(WAY).repeat_interleave(SHOT + QUERY)
        expected += nn.functional.cross_entropy(logits, query.y[t])
        expected += 0.3 * nn.functional.cross_entropy(second[0], labels)
    assert close(loss, expected / TASKS)  # type: ignore[arg-type]


# Transductive inference


def test_soft_k_means() -> None:
    made = head("softkmeans", "refine.steps=2")
    support, query = episodes()
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        mine = [support.x[t][support.y[t] == c] for c in range(WAY)]
        centres = [m.mean(0) for m in mine]
        for _ in range(2):
            weights = [torch.stack([-(q - c).square().sum() for c in centres]).softmax(0) for q in query.x[t]]
            centres = [
                (mine[c].sum(0) + sum(w[c] * q for w, q in zip(weights, query.x[t], strict=True)))
                / (len(mine[c]) + sum(w[c] for w in weights))
                for c in range(WAY)
            ]
        for n in range(WAY * QUERY):
            logits = torch.stack([-(query.x[t, n] - c).square().sum() for c in centres])
            assert close(found[t, n].log_softmax(0), logits.log_softmax(0))


def test_laplacian() -> None:
    made = head("laplacianshot", "refine.steps=3", "refine.neighbours=2", "features=none")
    support, query = episodes()
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        q = query.x[t]
        centres = torch.stack([support.x[t][support.y[t] == c].mean(0) for c in range(WAY)])
        alone = -(q[:, None] - centres).square().sum(-1)
        near = [sorted(range(len(q)), key=lambda p, n=n: float((q[n] - q[p]).norm()))[1:3] for n in range(len(q))]
        y = alone.softmax(-1)
        for _ in range(3):
            logits = torch.stack([alone[n] + 0.7 * sum(y[p] for p in near[n]) for n in range(len(q))])
            y = logits.softmax(-1)
        assert close(found[t].log_softmax(-1), logits.log_softmax(-1))
        assert not close(found[t].log_softmax(-1), alone.log_softmax(-1))


def normalised(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def means(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x[y == c].mean(0) for c in range(WAY)])


@pytest.mark.parametrize("confident", [1, 2, 12])
def test_prototype_rectification(confident: int) -> None:
    made = head("bdcspn", f"refine.confident={confident}")
    support, query = episodes()
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        s, q = normalised(support.x[t]), normalised(query.x[t])
        q = q + s.mean(0) - q.mean(0)
        rectified = []
        former = normalised(means(s, support.y[t]))
        cosines = normalised(q) @ former.T
        for c in range(WAY):
            own = sorted((n for n in range(len(q)) if cosines[n].argmax() == c), key=lambda n, c=c: -cosines[n, c])
            members = [*s[support.y[t] == c], *(q[n] for n in own[:confident])]
            weights = [(10 * normalised(m) @ former[c]).exp() for m in members]
            rectified.append(sum(w * m for w, m in zip(weights, members, strict=True)) / sum(weights))
        logits = 10 * normalised(q) @ normalised(torch.stack(rectified)).T
        assert close(found[t], logits)


def test_centring_by_the_tasks_own_mean() -> None:
    made = head(
        "protonet", "distance=cosine", "scale=2", "refine._target_=metarun.algorithms.metric.transductive.Centred"
    )
    support, query = episodes()
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        mean = (support.x[t].sum(0) + query.x[t].sum(0)) / (len(support.x[t]) + len(query.x[t]))
        centres = means(support.x[t] - mean, support.y[t])
        assert close(found[t], 2 * normalised(query.x[t] - mean) @ normalised(centres).T)
    assert made.protocol()["inference"].startswith("transductive: ")


def test_mutual_information() -> None:
    weight, alpha, scale, steps = 0.3, 0.2, 4.0, 3
    made = head("tim", f"scale={scale}", f"refine.support_weight={weight}", f"refine.conditional_weight={alpha}",
                f"refine.steps={steps}")  # fmt: skip
    support, query = episodes()
    found = made.fit(support)(query.x)
    for t in range(TASKS):
        s, q, y = normalised(support.x[t]), normalised(query.x[t]), support.y[t]
        one_hot = nn.functional.one_hot(y, WAY).double()
        w = means(s, y)

        def predicted(x: Tensor, w: Tensor) -> Tensor:
            return (-scale * (x[:, None] - w).square().sum(-1)).softmax(-1)

        for _ in range(steps):
            p = predicted(q, w)
            a = p ** (1 + alpha) / (p ** (1 + alpha)).sum(0).sqrt()
            a = a / a.sum(1, keepdim=True)
            at = w.clone().requires_grad_()
            # The objective for fixed assignments, of whose minimum the update is a preconditioned gradient step.
            objective = -weight / len(s) * (one_hot * predicted(s, at).log()).sum()
            objective = objective - (1 + alpha) / len(q) * (a * predicted(q, at).log()).sum()
            (gradient,) = torch.autograd.grad(objective, at)
            curvature = 2 * scale * (weight / len(s) * one_hot.sum(0) + (1 + alpha) / len(q) * a.sum(0))
            w = w - gradient / curvature[:, None]
        assert close(found[t].softmax(-1), predicted(q, w))


def test_mutual_information_of_queries_and_predictions_grows() -> None:
    support, query = episodes(scale=0.5)

    def information(steps: int) -> Tensor:
        p = head("tim", f"refine.steps={steps}").fit(support)(query.x).softmax(-1)
        return (p * p.log()).sum(-1).mean(1) - (p.mean(1) * p.mean(1).log()).sum(-1)

    assert (information(30) > information(1) + 0.01).all()


def unbalanced(support: Labelled) -> Labelled:
    """All examples of class 0, and one of each other class."""
    rows = torch.stack([
        torch.cat([torch.nonzero(y == c)[:, 0][: None if c == 0 else 1] for c in range(WAY)]) for y in support.y
    ])  # fmt: skip
    x = torch.stack([each[chosen] for each, chosen in zip(support.x, rows, strict=True)])
    return Labelled(x, support.y.gather(1, rows), WAY)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("choose", [lambda support: support, unbalanced], ids=["balanced", "unbalanced"])
def test_optimal_transport(steps: int, choose: Callable[[Labelled], Labelled]) -> None:
    made = head("ptmap", f"refine.steps={steps}", "refine.sinkhorn_steps=300", "refine.rate=0.3", "scale=1")
    support, query = episodes()
    support = choose(support)
    found = made.fit(support)(query.x)

    def transport(cost: Tensor) -> Tensor:
        """Sinkhorn's algorithm with logarithms."""
        log = -cost
        for _ in range(300):
            log = log - log.logsumexp(0) + torch.tensor(len(cost) / WAY).log()
            log = log - log.logsumexp(1, keepdim=True)
        return log.exp()

    for t in range(TASKS):
        s, q = (normalised(x.sign() * (x.abs() + 1e-6).sqrt()) for x in (support.x[t], query.x[t]))
        s, q = normalised(s - s.mean(0)), normalised(q - q.mean(0))
        centres = means(s, support.y[t])
        for _ in range(steps):
            share = transport((q[:, None] - centres).square().sum(-1))
            for c in range(WAY):
                own = s[support.y[t] == c]
                mean = (own.sum(0) + share[:, c] @ q) / (len(own) + share[:, c].sum())
                centres[c] = centres[c] + 0.3 * (mean - centres[c])
        assert torch.allclose(found[t].exp(), transport((q[:, None] - centres).square().sum(-1)), atol=1e-8)
        assert torch.allclose(found[t].exp().sum(0), torch.tensor(QUERY * 1.0), atol=1e-8)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_optimal_transport_is_finite_for_every_scale(scale: float) -> None:
    support, query = episodes()
    assert (
        head("ptmap", f"scale={scale}")
        .float()
        .fit(replace(support, x=support.x.float()))(query.x.float())
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("name", ["tim", "ptmap"])
def test_refinements_of_squared_distances_refuse_others(name: str) -> None:
    with pytest.raises(UserError, match=r"^algorithm.head.distance=cosine: \w+ needs euclidean$"):
        head(name, "distance=cosine")


@pytest.mark.parametrize("name", ["softkmeans", "laplacianshot", "tim", "bdcspn", "ptmap"])
def test_protocols_say_that_inference_is_transductive(name: str) -> None:
    assert head(name).protocol()["inference"].startswith("transductive: ")


# Classifiers of all base classes


@pytest.mark.parametrize("name", ["baseline", "baselinepp"])
@pytest.mark.parametrize("size", [4, "null"])
def test_fine_tuning_is_torchs_own_descent(name: str, size: int | str) -> None:
    """The same random numbers, task by task, with torch's layer and torch.optim.SGD."""
    made = head(name, "epochs=5", f"batch={size}", "lr=0.3")
    support, query = episodes()
    torch.manual_seed(3)
    found = made.fit(support)(query.x)
    torch.manual_seed(3)
    bound = WIDTH**-0.5
    weights = torch.empty(TASKS, WAY * WIDTH).uniform_(-bound, bound).view(TASKS, WAY, WIDTH)
    offsets = torch.empty(TASKS, WAY).uniform_(-bound, bound)
    examples = support.x.shape[1]
    orders = [torch.rand(TASKS, examples).argsort(-1) for _ in range(5)]
    for t in range(TASKS):
        linear = nn.Linear(WIDTH, WAY, bias=name == "baseline")
        with torch.no_grad():
            linear.weight.copy_(weights[t])
            if name == "baseline":
                linear.bias.copy_(offsets[t])

        def logits(x: Tensor, linear: nn.Linear = linear) -> Tensor:
            if name == "baseline":
                return linear(x)
            return 10 * torch.cosine_similarity(x[:, None], linear.weight[None], dim=-1)

        descent = torch.optim.SGD(linear.parameters(), lr=0.3, momentum=0.9, dampening=0.9, weight_decay=0.001)
        for order in orders:
            for chosen in order[t].split(examples if size == "null" else int(size)):
                descent.zero_grad()
                nn.functional.cross_entropy(logits(support.x[t][chosen]), support.y[t][chosen]).backward()
                descent.step()
        assert close(found[t], logits(query.x[t]))


def test_gradients_flow_through_fine_tuning() -> None:
    made = head("baseline", "epochs=3", "batch=null", "lr=0.3")
    support, query = episodes()

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        s = replace(support, x=x)
        return made.loss(s, query, made.fit(s)(query.x))

    assert finite_difference_error(loss, support.x) < 1e-6


@pytest.mark.parametrize("name", ["baseline", "baselinepp", "simpleshot"])
def test_a_classifier_of_all_base_classes(name: str) -> None:
    torch.manual_seed(0)
    spec = replace(SPEC, train_classes=5)
    keys = section(name, "norm=transductive", "outer_lr=0.05")
    learner = construct(keys, model=Plain(), spec=spec)
    shape = learner.train_shape(EpisodeShape(3, 1, 15))
    assert (shape.way, shape.shot, shape.query, shape.named) == (5, 1, 0, True)
    centres, y = torch.randn(5, WIDTH), torch.arange(5).expand(4, -1)
    data = Labelled(centres[y] + 0.1 * torch.randn(4, 5, WIDTH), y, 5)
    loss, _ = learner.outer_loss(TaskBatch(data, data))
    features, expected = learner.model(data.x), 0.0
    for t in range(4):
        for n in range(5):
            f, w = features[t, n], learner.classes.weight
            cosine = 10 * torch.stack([f @ v / (f.norm() * v.norm()) for v in w])
            expected += nn.functional.cross_entropy(cosine if name == "baselinepp" else learner.classes(f), y[t, n])
    assert close(loss, expected / 20)  # type: ignore[arg-type]
    if name == "simpleshot":
        assert close(learner.head.running_mean, features.detach().flatten(0, 1).mean(0))
    accuracies = [float(learner.meta_step(TaskBatch(data, data), i)["accuracy"]) for i in range(60)]
    assert accuracies[-1] == 1.0
    assert learner.evaluate(TaskBatch(*episodes()))["accuracy"].mean() > 0.5
