"""Neural processes in float64 against likelihoods, bounds and attention written out by hand."""

from __future__ import annotations

from math import log, pi, sqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from metarun.algorithms.amortised.neural_process import NeuralProcess, Predictive, SelfAttention
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.attention import attend
from metarun.models.linear import Linear
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed
from tests.slow import slow_but

SPEC = Spec("regression", "vector", (3,), 2)


def learner(name: str, **changes: Any) -> NeuralProcess:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    small = {"width": 8, "heads": 2, "latent": 4 if name != "cnp" else 0, "outer_lr": 0.001, **changes}
    section = composed(f"algorithm={name}")["algorithm"] | small
    return construct(section, model=Linear(bias=False), spec=SPEC)


def batch(context: int = 4, query: int = 3) -> TaskBatch:
    torch.manual_seed(1)
    sx, sy, qx, qy = (torch.randn(2, n, d) for n, d in ((context, 3), (context, 2), (query, 3), (query, 2)))
    return TaskBatch(Labelled(sx, sy), Labelled(qx, qy))


def run_by_hand(layers: Any, x: Tensor) -> Tensor:
    """An MLP on one vector, from its weights."""
    linear = [m for m in layers if isinstance(m, torch.nn.Linear)]
    for i, m in enumerate(linear):
        x = m.weight @ x + m.bias
        x = x.clamp(min=0) if i < len(linear) - 1 else x
    return x


def density_by_hand(out: Tensor, y: Tensor) -> float:
    """log N(y; mean, std^2) of the decoder's outputs [2 D]."""
    total = 0.0
    for d in range(2):
        mean, std = out[d].item(), 0.1 + 0.9 * log(1 + out[2 + d].exp().item())
        total += -((y[d].item() - mean) ** 2) / (2 * std**2) - 0.5 * log(2 * pi * std**2)
    return total


def test_conditional_likelihood_by_hand() -> None:
    """Equations 2-4, point by point: the outer loss on context and targets, the metric on the query points alone."""
    cnp, data = learner("cnp"), batch()
    assert len(list(cnp.encoder[0])) == 7
    assert len(list(cnp.decoder)) == 5
    assert not hasattr(cnp, "latent_head")
    outer, metric = [], []
    for (sx, sy), (qx, qy) in zip(data.support.tasks(), data.query.tasks(), strict=True):
        pairs = [run_by_hand(cnp.encoder[0], torch.cat([x, y])) for x, y in zip(sx, sy, strict=True)]
        r = sum(pairs) / len(pairs)
        of = [
            density_by_hand(run_by_hand(cnp.decoder, torch.cat([x, r])), y)
            for x, y in zip([*sx, *qx], [*sy, *qy], strict=True)
        ]
        outer += of
        metric.append(-sum(of[4:]) / 3)
    loss, metrics = cnp.outer_loss(data)
    assert loss.item() == pytest.approx(-sum(outer) / len(outer), rel=1e-12)
    assert metrics["nll"].item() == pytest.approx(loss.item())
    assert cnp.evaluate(data)["nll_with_context"].mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert cnp.evaluate(data)["nll"].tolist() == [[pytest.approx(v, rel=1e-12)] for v in metric]


@pytest.mark.parametrize("name", ["np", "anp"])
def test_the_bound_by_torchs_distributions(name: str) -> None:
    """Garnelo et al. 2018b, equation 8: E_q log p(y | x, z) - KL(q(z | all) || q(z | context)), a point."""
    process, data = learner(name), batch()
    x, y = torch.cat([data.support.x, data.query.x], 1), torch.cat([data.support.y, data.query.y], 1)

    def q(x: Tensor, y: Tensor) -> Normal:
        encoded = process.latent_encoder(torch.cat([x, y], -1)).mean(-2)
        mean, raw = process.latent_head(encoded).split(4, -1)
        return Normal(mean, 0.1 + 0.9 * raw.sigmoid())

    torch.manual_seed(5)
    loss, metrics = process.outer_loss(data)
    torch.manual_seed(5)
    posterior = q(x, y)
    z = posterior.rsample()
    r = process.attend(data.support, x)
    mean, raw = process.decoder(torch.cat([x, r, z[:, None].expand(-1, 7, -1)], -1)).split(2, -1)
    likelihood = Normal(mean, 0.1 + 0.9 * (1 + raw.exp()).log()).log_prob(y).sum(-1).mean(1)
    kl = kl_divergence(posterior, q(data.support.x, data.support.y)).sum(-1)
    assert loss.item() == pytest.approx(-(likelihood - kl / 7).mean().item(), rel=1e-12)
    assert metrics["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-12)


def test_the_latent_likelihood_is_the_mean_over_samples_of_whole_curves() -> None:
    process, data = learner("np", samples=3), batch()
    torch.manual_seed(2)
    adapted = process.adapt(data.support)
    assert isinstance(adapted, Predictive)
    mean, std = adapted.gaussians(data.query.x)
    assert mean.shape == (3, 2, 3, 2)
    assert not torch.allclose(mean[0], mean[1])
    curves = Normal(mean, std).log_prob(data.query.y).sum((2, 3)).exp().mean(0)  # [T]
    at_context = Normal(*adapted.gaussians(data.support.x)).log_prob(data.support.y).sum((2, 3))
    whole = (Normal(mean, std).log_prob(data.query.y).sum((2, 3)) + at_context).exp().mean(0)
    torch.manual_seed(2)
    metrics = process.evaluate(data)
    assert torch.allclose(metrics["nll_with_context"][:, 0], -whole.log() / 7, rtol=1e-10)
    assert torch.allclose(metrics["nll"][:, 0], -curves.log() / 3, rtol=1e-10)
    assert torch.allclose(metrics["mse"][:, 0], (mean.mean(0) - data.query.y).square().mean((1, 2)))
    assert torch.equal(adapted(data.query.x), mean.mean(0))


def test_attention_against_a_loop() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    q, k, v = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    got = attend(q, k, v, 2)
    for t in range(2):
        for n in range(3):
            for h in range(2):
                part = slice(4 * h, 4 * h + 4)
                weights = [float((q[t, n, part] @ k[t, m, part] / sqrt(4)).exp()) for m in range(5)]
                want = sum(w * v[t, m, part] for m, w in enumerate(weights)) / sum(weights)
                assert torch.allclose(got[t, n, part], want, rtol=1e-12)


@pytest.mark.parametrize("attention", ["dot", "multihead"])
def test_each_point_attends_by_its_own_x(attention: str) -> None:
    process, data = learner("anp", attention=attention, latent=0), batch()
    values = process.encoder(torch.cat([data.support.x, data.support.y], -1))
    q, k = process.keys(data.query.x), process.keys(data.support.x)
    if attention == "dot":
        want = (q @ k.mT / sqrt(8)).softmax(-1) @ values
    else:
        a, b, c, out = process.projections
        want = out(attend(a(q), b(k), c(values), 2))
    assert torch.allclose(process.attend(data.support, data.query.x), want)
    uniform = learner("cnp")
    r = uniform.attend(data.support, data.query.x)
    assert torch.equal(r[:, 0], r[:, 2])
    # A point far along the direction of one key sees that point's value alone.
    assert not torch.allclose(want[:, 0], want[:, 1])


def test_residual_attention_is_a_post_norm_transformers() -> None:
    """LN(a + L a) of a = LN(attention + queries), with torch's own attention and written-out norms."""
    process, data = learner("anp", attention="residual", latent=0), batch()
    for norm in process.after_attention.norms:
        torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    theirs = torch.nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([each.weight for each in process.projections[:3]]))
        theirs.out_proj.weight.copy_(process.projections[3].weight)
    values = process.encoder(torch.cat([data.support.x, data.support.y], -1))
    queries, keys = process.keys(data.query.x), process.keys(data.support.x)

    def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    first, second = process.after_attention.norms
    seen = normed(theirs(queries, keys, values, need_weights=False)[0] + queries, first)
    linear = process.after_attention.linear
    want = normed(seen + seen @ linear.weight.mT + linear.bias, second)
    assert torch.allclose(process.attend(data.support, data.query.x), want, rtol=1e-10)


def test_xaviers_weights_have_the_variance_of_his_rule_and_no_biases() -> None:
    process = learner("anp", init="xavier", width=64, self_attention=1)
    linear = {name: layer for name, layer in process.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert linear["keys.0"].bias.std() > 0.3
    for layer in (layer for name, layer in linear.items() if not name.startswith(("model.", "keys."))):
        assert layer.bias is None or not layer.bias.any()
        if min(layer.weight.shape) >= 64:
            assert layer.weight.std().item() == pytest.approx(sqrt(2 / sum(layer.weight.shape)), rel=0.1)


def test_the_loss_of_targets_is_the_metric_of_the_query_points() -> None:
    process, data = learner("cnp", loss="targets"), batch()
    loss, _ = process.outer_loss(data)
    assert loss.item() == pytest.approx(process.evaluate(data)["nll_sum"].mean().item(), rel=1e-12)
    latent, mean = learner("np", loss="targets"), learner("np")
    torch.manual_seed(5)
    loss, metrics = latent.outer_loss(data)
    torch.manual_seed(5)
    _, of_all = mean.outer_loss(data)
    assert loss.item() == pytest.approx((3 * metrics["nll"] + of_all["kl"]).item(), rel=1e-12)


@pytest.mark.parametrize("changes", [{}, {"self_attention": 2}, {"deterministic": False}])
def test_the_order_of_the_context_does_not_matter(changes: dict[str, Any]) -> None:
    process, data = learner("anp", **changes), batch()
    assert hasattr(process, "encoder") == ("deterministic" not in changes)
    shuffled = TaskBatch(data.support.map(lambda t: t[:, [2, 0, 3, 1]]), data.query)
    results = []
    for each in (data, shuffled):
        torch.manual_seed(0)
        results.append(process.evaluate(each)["nll"])
    assert torch.allclose(*results, rtol=1e-10)


def test_self_attention_adds_to_what_there_was() -> None:
    torch.set_default_dtype(torch.float64)
    layer, values = SelfAttention(8, 2), torch.randn(2, 5, 8)
    q, k, v = (values @ part.mT for part in layer.read.weight.split(8))
    assert torch.allclose(layer(values), values + attend(q, k, v, 2) @ layer.out.weight.mT)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm.deterministic=false needs algorithm.latent"):
        learner("cnp", deterministic=False)
    with pytest.raises(UserError, match=r"algorithm.width=8 cannot be shared out among algorithm.heads=3"):
        learner("anp", heads=3)


@pytest.mark.parametrize("name", slow_but(["cnp"], ["cnp", "np", "anp"]))
def test_learns_curves(name: str) -> None:
    """In seconds: a lower likelihood loss than the best that ignores the context."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    words = ["task=regression/gp", "task.length=[0.8,0.8]", "task.scale=[1.0,1.0]", "task.query=10", "task.shot=9"]
    words += [f"algorithm={name}", "algorithm.outer_lr=0.003", "algorithm.width=32"]
    config = composed(*words, *([] if name == "cnp" else ["algorithm.latent=8"]))
    task = construct(config["task"], seed=0)
    process = construct(config["algorithm"], model=Linear(bias=False), spec=task.spec)
    for i in range(400):
        torch.manual_seed(i)
        process.meta_step(task.batch("train", range(16 * i, 16 * i + 16)), i)
    torch.manual_seed(0)
    nll = torch.cat([process.evaluate(task.batch("test", range(16 * i, 16 * i + 16)))["nll"] for i in range(10)])
    assert nll.mean() < 1.1  # that of N(0, 1) is 1.42
