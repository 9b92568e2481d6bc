"""Exported optimizers: equal to the meta-trained inner loop, real torch optimizers, and files that are data."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from test_gradient import RULES, batch, body, build, perturb
from torch import Tensor, nn

import metarun
from metarun.adapted.optimizer import LearnedOptimizer
from metarun.adapted.optimizer_file import save_optimizer
from metarun.algorithms.gradient.pieces import Rule
from metarun.config.build import construct
from metarun.config.paths import conf_directory
from metarun.errors import UserError
from metarun.tasks.episode import TaskBatch

LEARNED = {
    file.stem: content["algorithm"]["rule"]
    for file in sorted(conf_directory().glob("algorithm/*.yaml"))
    if "learned_optimizers." in str((content := yaml.safe_load(file.read_text())).get("algorithm", {}).get("rule"))
}
"""Update rule of each algorithm with a learned optimizer."""
RULE = {"_target_": "metarun.algorithms.gradient.learned_optimizers.MLPOptimizer", "hidden": [4], "decays": [0.5, 0.9]}
OTHERS = {
    "adam": {"_target_": f"{RULES}.Adam", "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "carry": False},
    "momentum": {"_target_": f"{RULES}.Momentum", "momentum": 0.9},
}


def rule_of(section: dict[str, Any], lr: float = 0.05) -> Rule:
    torch.manual_seed(0)
    rule: Rule = construct(section)
    rule.prepare({}, lr, 100)
    return rule


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    """Fit random targets, with data of its own at each step."""
    dtype = next(net.parameters()).dtype
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(8, n, generator=generator, dtype=dtype) for n in (3, 2))
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "dtype"), [*itertools.product([*LEARNED, *OTHERS], ["float64"]), *((n, "float32") for n in LEARNED)]
)
def test_it_takes_the_steps_of_the_inner_loop(name: str, dtype: str, request: pytest.FixtureRequest) -> None:
    if dtype == "float64":
        request.getfixturevalue("float64")
    changes = {"rule": OTHERS[name]} if name in OTHERS else {}
    torch.manual_seed(3)
    learner, data = build("scratch" if changes else name, body(), inner_lr=0.05, **changes), batch()
    perturb(learner)
    trajectory = learner.trajectory(data.support, 30, None)
    start = next(trajectory).parameters
    net = copy.deepcopy(learner.net).requires_grad_()
    with torch.no_grad():
        for n, p in net.named_parameters():
            p.copy_(start[n][1])
    first, second = list(net[0].parameters()), list(net[1].parameters())
    optimizer = LearnedOptimizer([{"params": second}, {"params": first}], learner.rule)  # groups in another order
    for now in trajectory:
        optimizer.zero_grad()
        F.cross_entropy(net(data.support.x[1]), data.support.y[1]).backward()
        optimizer.step()
        for n, p in net.named_parameters():
            assert torch.allclose(now.parameters[n][1], p, rtol=0, atol=1e-10 if dtype == "float64" else 1e-6), n
    assert max(float((p - start[n][1]).detach().abs().max()) for n, p in net.named_parameters()) > 0.01


def test_rules_of_the_catalogue_are_learned() -> None:
    assert {"l2l", "l2l_mlp", "pes"} <= {*LEARNED}


@pytest.mark.parametrize("section", LEARNED.values(), ids=LEARNED)
def test_it_goes_on_bit_by_bit_after_saving_and_loading(section: dict[str, Any], tmp_path: Path) -> None:
    rule = rule_of(section)
    save_optimizer(tmp_path / "o.pt", section, 0.05, 100, rule.state_dict())
    make = metarun.load_optimizer(tmp_path / "o.pt")
    nets = [network() for _ in range(4)]
    whole = LearnedOptimizer(nets[0].parameters(), rule)
    train(nets[0], whole, 60)
    train(nets[1], stopped := make(nets[1].parameters()), 30)
    buffer = io.BytesIO()
    torch.save({"net": nets[1].state_dict(), "optimizer": stopped.state_dict()}, buffer)
    buffer.seek(0)
    kept = torch.load(buffer, weights_only=True)
    nets[2].load_state_dict(kept["net"])
    resumed = make(nets[2].parameters())
    resumed.load_state_dict(kept["optimizer"])
    train(nets[2], resumed, 30, 30)
    assert same(nets[0], nets[2])
    nets[3], copied = copy.deepcopy((nets[1], stopped))
    train(nets[3], copied, 30, 30)
    assert same(nets[0], nets[3])
    pickled_net, pickled = pickle.loads(pickle.dumps((nets[1], stopped)))
    train(pickled_net, pickled, 30, 30)
    assert same(nets[0], pickled_net)


def test_groups_have_multipliers_that_schedulers_change_and_decoupled_weight_decay() -> None:
    net, still, rule = network(), network(), rule_of(RULE)
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.5, "weight_decay": 0.1}]
    optimizer = LearnedOptimizer(groups, rule)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    plain = LearnedOptimizer(still.parameters(), rule)
    train(net, optimizer, 1)
    train(still, plain, 1)
    for p, q, start in zip(net.parameters(), still.parameters(), network().parameters(), strict=True):
        lr, decay = (1.0, 1.0) if p.shape[0] == 5 else (0.5, 1 - 0.5 * 0.1)
        assert torch.allclose(p, decay * start + lr * (q - start), atol=1e-7)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.05])
    optimizer.param_groups[0]["lr"] = torch.tensor(0.0)
    before = copy.deepcopy(net[0])
    train(net, optimizer, 1, 1)
    assert same(before, net[0])
    assert optimizer.state[net[0].weight]["step"] == 2


def test_a_closure_and_parameters_without_gradients() -> None:
    net = network()
    optimizer = LearnedOptimizer(net[0].parameters(), rule_of(RULE))
    optimizer.add_param_group({"params": net[2].parameters()})
    net[0].requires_grad_(False)
    before = copy.deepcopy(net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > optimizer.step(closure).item() > 0
    assert same(before[0], net[0])
    assert not same(before[2], net[2])
    assert net[0].weight not in optimizer.state
    net[0].requires_grad_()
    optimizer.step(closure)
    assert [optimizer.state[p]["step"] for p in net.parameters()] == [1, 1, 3, 3]
    optimizer.zero_grad(set_to_none=True)
    before = copy.deepcopy(net)
    optimizer.step()
    assert same(before, net)


def test_parameters_in_parts_move_as_those_of_an_optimizer_each() -> None:
    """Parameters with other step counts are computed apart, also where the state has a row for each entry."""
    section = LEARNED["l2l"]
    net, other, rule = network(), network(), rule_of(section)
    train(other, LearnedOptimizer(other.parameters(), rule), 2)
    optimizer = LearnedOptimizer(net.parameters(), rule)
    net[2].bias.requires_grad_(False)
    train(net, optimizer, 1)
    net[2].bias.requires_grad_(True)
    train(net, optimizer, 1, 1)
    for p, q in zip([*net.parameters()][:2], [*other.parameters()][:2], strict=True):
        assert torch.allclose(p, q, atol=1e-2)
    assert optimizer.state[net[0].weight]["rule"]["layer0"]["cell"].shape == (15, section["hidden"][0])


def test_what_it_cannot_optimize_is_refused() -> None:
    rule = rule_of(RULE)
    with pytest.raises(TypeError, match="bfloat16"):
        LearnedOptimizer(network().to(torch.bfloat16).parameters(), rule)
    with pytest.raises(ValueError, match="lr=-1"):
        LearnedOptimizer(network().parameters(), rule, lr=-1)
    with pytest.raises(ValueError, match="weight_decay"):
        LearnedOptimizer(network().parameters(), rule, weight_decay=float("nan"))
    table = nn.Embedding(3, 2, sparse=True)
    optimizer = LearnedOptimizer(table.parameters(), rule)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    ("rule", "learned", "why"),
    [
        ({"_target_": f"{RULES}.SGD"}, {}, "nothing is learned"),
        ({"_target_": f"{RULES}.MetaSGD"}, {"rates.0": torch.zeros(1)}, "of the run's own model"),
        ({"_target_": f"{RULES}.LSLR"}, {"rates": torch.zeros(100, 1)}, "of the run's own model"),
    ],
    ids=["sgd", "metasgd", "lslr"],
)
def test_rules_that_fit_no_other_parameters_are_refused(
    rule: dict[str, Any], learned: dict[str, Tensor], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=why):
        save_optimizer(tmp_path / "o.pt", rule, 0.1, 100, learned)
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rule": {"_target_": "subprocess.run", "args": ["touch", "TOUCHED"]}}, "not a component of metarun"),
        ({"rule": {"_target_": "metarun.tasks.files.os.system"}}, "not a component of metarun"),
        ({"rule": {"_target_": "metarun.models.linear.Linear"}}, "not a subclass of"),
        ({"rule": {**RULE, "hidden": "wide"}}, "hidden"),
        ({"rule": {**RULE, "hidden": [5]}}, "damaged"),
        ({"rule": {**RULE, "decays": ["${oc.env:HOME}"]}}, "environment"),
        ({"parameters": {}}, "damaged"),
        ({"parameters": [1]}, "damaged"),
        ({"dtype": "bool"}, "damaged"),
        ({"lr": "fast"}, "damaged"),
        ({"rule": 3}, "damaged"),
        ({"format": 7}, "not an exported optimizer"),
    ],
)
def test_a_file_is_data(change: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_optimizer(Path("o.pt"), RULE, 0.05, 100, rule_of(RULE).state_dict())
    metarun.load_optimizer("o.pt")
    torch.save({**torch.load("o.pt", weights_only=True), **change}, "o.pt")
    with pytest.raises(UserError, match=why):
        metarun.load_optimizer("o.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["o.pt"]


def test_a_file_with_code_or_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        metarun.load_optimizer(tmp_path / "o.pt")
    torch.save({"format": 1, "rule": TaskBatch}, tmp_path / "o.pt")
    with pytest.raises(UserError, match="damaged"):
        metarun.load_optimizer(tmp_path / "o.pt")
