"""Transformer neural processes in float64 against torch's own encoder layer, one target after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from metarun.algorithms.amortised.tnp import TransformerNeuralProcess
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models.linear import Linear
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed

CONTEXT, QUERY = 4, 3


def learner(**changes: Any) -> TransformerNeuralProcess:
    section = (
        composed("algorithm=tnp")["algorithm"] | {"width": 8, "heads": 2, "layers": 2, "decay_over": None} | changes
    )
    process = construct(section, model=Linear(bias=False), spec=Spec("regression", "vector", (3,), 2))
    for p in process.parameters():  # biases and norms too
        p.data += 0.1 * torch.randn_like(p)
    return process


def batch() -> TaskBatch:
    parts = [Labelled(torch.randn(2, n, 3), torch.randn(2, n, 2)) for n in (CONTEXT, QUERY)]
    return TaskBatch(*parts)


def torchs(process: TransformerNeuralProcess) -> list[nn.TransformerEncoderLayer]:
    layers = []
    for block in process.blocks:
        layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = (
            block.attention.weight,
            block.attention.bias,
        )
        pairs = [
            (layer.self_attn.out_proj, block.out), (layer.norm1, block.before_attention),
            (layer.norm2, block.before_units), (layer.linear1, block.units[0]), (layer.linear2, block.units[2]),
        ]  # fmt: skip
        for theirs, ours in pairs:
            theirs.load_state_dict(ours.state_dict())
        layers.append(layer)
    return layers


def by_hand(process: TransformerNeuralProcess, data: TaskBatch) -> tuple[Tensor, Tensor]:
    """Predict each target by a pass of its own over the context, the targets before it and its question."""
    layers, means, stds = torchs(process), [], []
    for i in range(QUERY):
        before = i if process.autoregressive else 0
        x = torch.cat([data.support.x, data.query.x[:, :before]], 1)
        y = torch.cat([data.support.y, data.query.y[:, :before]], 1)
        pairs = torch.cat([x, y, torch.ones(2, len(x[0]), 1)], -1)
        question = torch.cat([data.query.x[:, i : i + 1], torch.zeros(2, 1, 3)], -1)
        tokens = process.embed(torch.cat([pairs, question], 1))
        hidden = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        hidden[:, :CONTEXT] = False
        for j in range(before):
            hidden[CONTEXT + j :, CONTEXT + j] = False
        for layer in layers:
            tokens = layer(tokens, hidden)
        mean, raw = process.head(tokens[:, -1:]).split(2, -1)
        means.append(mean)
        stds.append(process.min_std + (1 - process.min_std) * (1 + raw.exp()).log())
    return torch.cat(means, 1), torch.cat(stds, 1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("autoregressive", [False, True])
def test_loss_and_likelihoods_by_torchs_layers(autoregressive: bool) -> None:
    process, data = learner(autoregressive=autoregressive), batch()
    expected = Normal(*by_hand(process, data)).log_prob(data.query.y).sum(-1)
    loss, metrics = process.outer_loss(data)
    assert loss.item() == metrics["nll"].item() == pytest.approx(-expected.mean().item(), rel=1e-10)
    found = process.evaluate(data)
    assert found["nll_sum"][:, 0].tolist() == pytest.approx((-expected.sum(1)).tolist(), rel=1e-10)
    assert found["nll"][:, 0].tolist() == pytest.approx((-expected.mean(1)).tolist(), rel=1e-10)
    mean, std = process.predictive(data.support)(data.support.x)
    known = Normal(mean[0], std[0]).log_prob(data.support.y).sum((1, 2))
    assert found["nll_with_context"][:, 0].tolist() == pytest.approx(
        (-(known + expected.sum(1)) / 7).tolist(), rel=1e-10
    )


@pytest.mark.usefixtures("float64")
def test_a_prediction_alone_is_given_the_context_only() -> None:
    process, data = learner(autoregressive=True), batch()
    together = process.predictive(data.support)(data.query.x)
    for i in range(QUERY):
        alone = process.predictive(data.support)(data.query.x[:, i : i + 1])
        assert all(
            torch.allclose(a[..., i : i + 1, :], b, rtol=0, atol=1e-12) for a, b in zip(together, alone, strict=True)
        )
    first = process.given_earlier(data.support, data.query)
    assert torch.allclose(first[0][:, :, 0], together[0][:, :, 0], rtol=0, atol=1e-12)
    assert not torch.allclose(first[0][:, :, 2], together[0][:, :, 2], atol=1e-4)


@pytest.mark.usefixtures("float64")
def test_the_order_of_the_context_does_not_matter() -> None:
    process, data = learner(), batch()
    turned = data.support.map(lambda part: part.flip(1))
    here, there = (process.predictive(support)(data.query.x) for support in (data.support, turned))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(here, there, strict=True))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"algorithm.width=8 cannot be shared out among algorithm.heads=3"):
        learner(heads=3)


def test_learns_curves() -> None:
    """In seconds: a lower likelihood loss than the best that ignores the context, 1.42."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    config = composed("task=regression/gp", "task.length=[0.8,0.8]", "task.scale=[1.0,1.0]", "task.query=10",
                      "task.shot=9", "algorithm=tnp", "algorithm.width=32", "algorithm.layers=2", "algorithm.heads=2",
                      "algorithm.outer_lr=0.006", "algorithm.decay_over=null")  # fmt: skip
    task = construct(config["task"], seed=0)
    process = construct(config["algorithm"], model=Linear(bias=False), spec=task.spec)
    for i in range(160):
        process.meta_step(task.batch("train", range(16 * i, 16 * i + 16)), i)
    nll = torch.cat([process.evaluate(task.batch("test", range(16 * i, 16 * i + 16)))["nll"] for i in range(10)])
    assert nll.mean() < 1.1
