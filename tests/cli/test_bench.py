"""``metarun bench``: every implementation finds the same gradient; what it prints and writes is what it measured."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from metarun.bench import compare, peers
from metarun.bench.compare import Row, flat_gradient, measure_memory, relative_error, rows_for
from metarun.bench.end_to_end import end_to_end, record_steps
from metarun.bench.implementations import METARUN, Implementation, PreparedStep
from metarun.bench.machine import limit_threads, measure_added_memory, time_step
from metarun.bench.peers import nanotabpfn
from metarun.bench.peers.learn2learn import MAMLReplica
from metarun.bench.report import legend, picture, table
from metarun.bench.rollouts import rollouts, rollouts_table
from metarun.bench.runs import runs_table, time_runs
from metarun.bench.tables import random_tables, tables, tables_table
from metarun.bench.workloads import WORKLOADS, Problem, Workload
from metarun.cli import main
from metarun.engine.step import Engine
from metarun.tasks.episode import EpisodeShape, Spec
from tests.slow import slow_but

CPU = torch.device("cpu")
HERE = [peer for peer in peers.PEERS.values() if peers.installed(peer)]
LONG = ("W2x5", "W3", "W5-Reptile")
"""Workloads of five inner steps, which are checked among the slow tests; the others take one."""
VARIANTS = ("metarun, whole step", "metarun, chunk 1")
"""Ways to run the engine, which are checked on the shortest workload; on the others among the slow tests."""
CELLS = [(name, i) for name, w in WORKLOADS.items() for i in [*METARUN, *HERE] if w.method in i.methods]
QUICK = [(name, i) for name, i in CELLS if name not in LONG and (name == "W1" or i.name not in VARIANTS)]


def small(name: str) -> Workload:
    """A workload of the same kind that takes milliseconds; images of odd sizes on the way."""
    workload = replace(WORKLOADS[name], tasks=2)
    if workload.spec.kind == "regression":
        return workload
    channels = workload.spec.input_shape[0]
    size = 10 if "model.downsample=stride" in workload.words else 20
    return replace(
        workload,
        words=(*workload.words, "model.width=4", "model.depth=2"),
        spec=Spec("classification", "image", (channels, size, size), 5),
        shape=EpisodeShape(5, 2, 3),
    )


def test_what_there_is() -> None:
    assert list(WORKLOADS) == ["W1", "W2", "W2x5", "W3", "W4", "W5-FOMAML", "W5-ANIL", "W5-Reptile"]
    assert list(peers.PEERS) == ["learn2learn", "higher", "torchopt", "jax"]
    assert len([i for _, i in CELLS if i.package is None]) == 38


@pytest.mark.parametrize(("name", "implementation"), slow_but(QUICK, CELLS), ids=lambda v: getattr(v, "name", v))
def test_every_implementation_finds_the_same_gradient(name: str, implementation: Implementation) -> None:
    """The engine's own derivation against torch.autograd through a loop of torch's own layers, in float64."""
    workload = small(name)
    ready = implementation.make(Problem(workload, CPU, torch.float64))
    ready.step()
    gradient = flat_gradient(ready)
    assert relative_error(gradient, compare.reference_gradient(workload)) < 1e-11
    if implementation.name != "metarun, whole step":  # which has moved its parameters
        ready.step()
        assert torch.equal(flat_gradient(ready), gradient) or relative_error(flat_gradient(ready), gradient) < 1e-12


def test_the_reference_against_finite_differences() -> None:
    problem = Problem(small("W2x5"), CPU, torch.float64)
    learner = problem.learner()
    direction = [torch.randn_like(p) for p in learner.parameters()]
    losses = []
    for eps in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(learner.parameters(), direction, strict=True):
                p += eps * d
        losses.append(learner.outer_loss(problem.batch)[0].item())
    along = float(compare.reference_gradient(small("W2x5")) @ torch.cat([d.flatten() for d in direction]))
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(along, rel=1e-6)


def test_workloads_have_the_published_sizes() -> None:
    counts = {name: sum(p.numel() for p in Problem(w.with_tasks(1), CPU, torch.float32).learner().parameters())
              for name, w in WORKLOADS.items()}  # fmt: skip
    conv64 = 3 * 3 * (64 + 3 * 64 * 64) + 4 * 2 * 64
    assert counts["W1"] == 2 * 40 + 41 * 40 + 41
    assert counts["W2"] == counts["W2x5"] == counts["W5-ANIL"] == conv64 + 65 * 5
    assert counts["W3"] == 9 * (3 * 32 + 3 * 32 * 32) + 4 * 2 * 32 + (32 * 25 + 1) * 5
    assert counts["W4"] == conv64
    learners = {name: Problem(w.with_tasks(1), CPU, torch.float32).learner() for name, w in WORKLOADS.items()}
    steps = {name: learner.inner_steps for name, learner in learners.items() if name != "W4"}
    assert steps == {"W1": 1, "W2": 1, "W2x5": 5, "W3": 5, "W5-FOMAML": 1, "W5-ANIL": 1, "W5-Reptile": 5}
    assert [w.tasks for w in WORKLOADS.values()] == [25, 32, 32, 4, 1, 32, 32, 32]


def test_the_replica_of_the_wrapper_leaves_its_module_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1, bias=False)))
    before = copy.deepcopy(net.state_dict())
    learner = MAMLReplica(net, 0.1, first_order=False).clone()
    learner.adapt(learner(torch.randn(4, 2)).square().mean())
    assert all(torch.equal(before[n], p) for n, p in net.state_dict().items())
    moved = [p for layer in learner.module.modules() for p in layer._parameters.values() if p is not None]
    assert not any(torch.equal(a, b) for a, b in zip(moved, net.parameters(), strict=True))
    learner(torch.randn(4, 2)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.slow
def test_compared(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(problem: Problem) -> PreparedStep:
        raise ValueError("not today\nnor tomorrow")

    workload = small("W1")
    rows = rows_for(workload, [Implementation("odd", "a peer that fails", ("maml",), fails, "odd")])
    assert [row.implementation.name for row in rows] == [peers.BASE.name, *(i.name for i in METARUN), "odd"]
    compare.compare(workload, rows, CPU, rounds=3)
    assert rows[-1].failed == "ValueError: not today"
    for row in rows[:-1]:
        assert len(row.samples) == 3
        assert row.error is not None
        assert row.error < 1e-3  # within rounding of a tie a ReLU may fall the other way
        assert row.error_float64 is not None
        assert row.error_float64 < 1e-11
    said = rows[1].as_dict(rows[0])
    ratios = sorted(a / b for a, b in zip(rows[0].samples, rows[1].samples, strict=True))
    assert said["times_learn2learn"] == {"median": ratios[1], "lowest": ratios[0], "highest": ratios[2]}
    assert table(workload, rows).row_count == len(rows)
    assert "a peer that fails" in legend({"W1": rows})
    assert len(picture({"W1": rows, "again": rows}).axes) == 2


def test_a_step_s_time_and_memory() -> None:
    held: list[torch.Tensor] = []

    def step() -> None:
        held[:] = [torch.ones(16_000_000)]  # 64 MB
        held.clear()

    ready = PreparedStep(step, lambda: held)
    assert time_step(ready, CPU, repeats=2) > 0
    assert 60 < measure_added_memory(ready, CPU) < 90


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    rows = [Row(METARUN[0])]
    measure_memory(WORKLOADS["W1"].with_tasks(1000), rows, CPU, threads=1)
    assert rows[0].added_mb is not None
    assert 3 < rows[0].added_mb < 300


def test_threads_are_put_back() -> None:
    with limit_threads(2, bind=True):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


def test_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.bench.end_to_end.find", lambda *where: None)  # letters, whatever lies here
    whole = end_to_end(2, 1, CPU, meta_batch=1)
    assert (whole.task, whole.iterations) == ("vision/glyphs", 2)
    assert 0 < whole.outside < whole.seconds


def test_rollouts() -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("mujoco")
    speeds = rollouts(2, 1, tasks=2, num_envs=2, vector_size=2)
    assert [len(speed.samples) for speed in speeds] == [2] * 6
    assert all(value > 0 for speed in speeds for value in speed.samples)
    base, collector = speeds[2:4]
    assert (base.name, collector.name) == ("MuJoCo's pool", "metarun, cheetah")
    assert collector.ratios(base)[1] == collector.samples[1] / base.samples[1]
    assert rollouts_table(speeds).row_count == 6
    assert torch.get_num_threads() == 1


def test_tables() -> None:
    speeds = tables(2, CPU, count=2)
    assert [speed.name for speed in speeds] == ["nanoTabPFN", "metarun", "metarun, as wide", "metarun, predicting"]
    assert all(len(speed.samples) == 2 and min(speed.samples) > 0 for speed in speeds)
    assert tables_table(speeds).row_count == 4


def test_nanotabpfn_reads_rows_and_columns_in_any_order_and_each_query_alone(float64: None) -> None:
    batch = random_tables(2).map(lambda t: t.double() if t.is_floating_point() else t)
    network, (x, y), query = nanotabpfn.Network(2), (batch.support.x, batch.support.y), batch.query.x
    found, rows, columns = network(x, y, query), torch.randperm(x.shape[1]), torch.randperm(x.shape[2])
    assert torch.allclose(network(x[:, rows], y[:, rows], query), found)
    assert torch.allclose(network(x[..., columns], y, query[..., columns]), found)
    assert torch.allclose(network(x, y, query[:, 3:4]), found[:, 3:4])


def test_only_the_run_s_own_steps_are_clocked() -> None:
    problem = Problem(small("W1"), CPU, torch.float32)
    learner = problem.learner()
    engine = Engine(learner)
    spans = record_steps(engine, CPU)
    Engine(copy.deepcopy(learner)).meta_step(problem.batch, 0)
    assert spans == []
    before = [p.clone() for p in learner.parameters()]
    engine.meta_step(problem.batch, 0)
    (span,) = spans
    assert span[0] < span[1]
    assert not all(torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["workloads=[W1]", "rounds=2", "threads=1", "meta_batch=2", "memory=false", "peers=learn2learn", "out=o"]
    assert main(["bench", *words]) == 0
    said = capsys.readouterr()
    assert "2 tasks per outer step" in said.out
    assert "W1: round 2 of 2" in said.err
    (file,) = (tmp_path / "o").glob("*.json")
    assert str(file.relative_to(tmp_path)) in said.out
    assert file.with_suffix(".png").stat().st_size > 1000
    result = json.loads(file.read_text())
    assert result["settings"]["rounds"] == 2
    assert result["versions"]["torch"]
    (workload,) = result["workloads"]
    assert [row["name"] for row in workload["rows"]] == [peers.BASE.name, *(i.name for i in METARUN)]
    assert all(len(row["samples_ms"]) == 2 for row in workload["rows"])


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rounds"], "'rounds' is no"),
        (["++rounds=3"], "++rounds=3: leave out the ++ sign"),
        (["rounds=1,2"], "rounds=1,2 has several values"),
        (["round=3"], "unknown key 'round' - did you mean 'rounds'?   allowed: workloads, peers, rounds"),
        (["rounds=0"], "rounds=0: should be greater than or equal to 1"),
        (["threads=two"], "threads=two: should be a valid integer"),
        (["memory=perhaps"], "memory=perhaps: should be a valid boolean"),
        (["rounds=[1"], "rounds=[1"),
        (["workloads=W2x4"], "workloads: unknown workload 'W2x4' - did you mean 'W2x5'?   known: W1, W2"),
        (["workloads="], "workloads: name at least one of W1, W2"),
        (["workloads=null"], "workloads=null: should be"),
        (["peers=lern2learn"], "peers: unknown peer 'lern2learn' - did you mean 'learn2learn'?"),
        (["device=tpu"], "device=tpu is not a device; allowed: auto, cpu, cuda"),
        (["out=/dev/null/x"], "out=/dev/null/x: cannot make this folder: Not a directory"),
    ],
)
def test_bad_input_gets_one_line(words: list[str], answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"metarun: {answer}")
    assert len(said.splitlines()) == 1


def test_a_peer_that_is_not_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda peer: peer.package is None)
    assert main(["bench", "peers=jax"]) == 2
    assert "jax is not installed here; scripts/peers installs the peers" in capsys.readouterr().err


def test_a_family_of_workloads() -> None:
    from metarun.cli.bench import chosen_workloads

    assert chosen_workloads(["W5", "W1", "W5-ANIL"], WORKLOADS) == ["W5-FOMAML", "W5-ANIL", "W5-Reptile", "W1"]


def test_times_of_whole_runs() -> None:
    words = ("runner.log_every=2", "runner.meta_batch=2")
    cases = {
        "supervised": (4, ("task=regression/sinusoid", "algorithm=maml", *words)),
        "rl": (3, ("task=rl/bandit", "algorithm=rl2", *words)),
        "unknown": (3, ("task=regression/sinusoid", "runner.precision=bfloat17")),
    }
    supervised, rl = time_runs(CPU, cases)  # the one that cannot be built is left out
    assert supervised.gradient is not None
    assert min(supervised.gradient, supervised.step, supervised.iteration) > 0
    assert supervised.threads == 1
    assert supervised.plan
    assert rl.gradient is None
    assert min(rl.step, rl.iteration) > 0
    assert runs_table([supervised, rl]).row_count == 2
