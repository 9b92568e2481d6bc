"""The public Python API."""

from __future__ import annotations

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import metarun
from metarun import api
from metarun.cli import main

EXAMPLES = sorted((Path(__file__).parent / "examples").glob("*.py"))
QUICK: dict[str, Any] = {
    "runner": {"iterations": 2, "val_episodes": 4, "test_episodes": 4, "plots": False, "threads": 1, "log_every": 1},
}


class Lines(metarun.Task):
    """y = a x, with slopes of their own."""

    kind, modality, metric, higher_is_better = "regression", "vector", "mse", False
    spec, shape = metarun.Spec("regression", "vector", (1,), 1), metarun.EpisodeShape(0, 2, 3)

    def batch(self, split: Any, indices: Any, shape: Any = None) -> metarun.TaskBatch:
        u = torch.tensor(metarun.uniforms(self.seed, split, indices, 6), dtype=torch.get_default_dtype())
        x = u[:, 1:, None]
        y = u[:, :1, None] * x
        return metarun.TaskBatch(metarun.Labelled(x[:, :2], y[:, :2]), metarun.Labelled(x[:, 2:], y[:, 2:]))


class Net(nn.Module):
    def __init__(self, spec: metarun.Spec | None = None, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, width), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_are_short(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = [line for line in ast.unparse(ast.parse(example.read_text())).splitlines()[1:] if line.strip()]
    assert len(code) <= 15
    for name, value in (("dark", 30), ("light", 220)):
        for i in range(2):
            Path("my_images", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), value + i, np.uint8)).save(f"my_images/{name}/{i}.png")
            Image.fromarray(np.full((28, 28), value + 9, np.uint8)).save(f"unknown_{1 + (value > 99)}.png")
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr()
    assert said.out
    assert not said.err


def test_importing_metarun_is_light_and_exports_what_it_says() -> None:
    code = "import sys, metarun; print('torch' in sys.modules, {*metarun.__all__} <= {*dir(metarun)})"
    environment = {**os.environ, "PYTHONPATH": str(Path(metarun.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.split() == ["False", "True"]

    assert metarun.__all__ == api.__all__
    tree = ast.parse(Path(metarun.__file__).read_text())
    (checked,) = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "metarun.api")
    assert [alias.name for alias in checked.names] == metarun.__all__
    assert all(hasattr(metarun, name) for name in metarun.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        metarun.nonsense  # noqa: B018
    assert (Path(metarun.__file__).parent / "py.typed").is_file()


def test_an_experiment_is_that_of_the_command_line_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    run = metarun.experiment("task=regression/sinusoid", algorithm="maml", seed=3, name="here", **QUICK).run()
    said = capfd.readouterr()
    assert not said.out
    assert not said.err
    assert "run directory" in (run.path / "metarun.log").read_text()
    words = [f"runner.{key}={value}".lower() for key, value in QUICK["runner"].items()]
    assert main(["task=regression/sinusoid", "algorithm=maml", "seed=3", "name=there", *words]) == 0
    (there,) = Path("outputs/there").iterdir()
    assert (there / "metrics.jsonl").read_bytes() == (run.path / "metrics.jsonl").read_bytes()
    assert {**metarun.load(there).config, "name": "here"} == run.config
    assert run.status == "finished"
    assert run.metrics["iteration"] == [1, 2, 2, 2]
    assert [row["iteration"] for row in run.metrics] == [1, 2, 2, 2]
    assert run.metrics["test/mse"][-1] == run.summary["test"]["mse"]["mean"]
    with pytest.raises(KeyError, match="did you mean 'train/mse'"):
        run.metrics["train/mze"]

    again = metarun.evaluate(run, "task.shot=3", runner={"test_episodes": 2})
    assert again["test"]["mse"]["n"] == 2
    assert Path(again["directory"]).is_file()
    adapted = metarun.adapt(there, [[0.0], [1.0], [2.0]], [[0.0], [1.0], [2.0]], steps=1)
    assert adapted.predict([[0.5], [1.5]]).values.shape == (2, 1)
    assert torch.get_default_dtype() == torch.float32


def test_a_run_goes_on_as_if_it_had_not_stopped() -> None:
    words = {"task": "regression/sinusoid", "algorithm": "maml", **QUICK}
    whole = metarun.experiment(words, "runner.iterations=4", name="whole").run()
    run = metarun.experiment(words, name="parts").run()
    assert run.resume() is run
    assert run.summary["iterations"] == 2
    assert run.resume("runner.iterations=4").summary["test"] == whole.summary["test"]
    losses = [{row["iteration"]: row["train/mse"] for row in r.metrics if "train/mse" in row} for r in (run, whole)]
    assert losses[0] == losses[1]
    assert sorted(losses[0]) == [1, 2, 3, 4]
    with pytest.raises(metarun.UserError, match="resume changes values and no components"):
        run.resume(model=Net)
    with pytest.raises(metarun.UserError, match=r"resume cannot change 'algorithm\.inner_lr'"):
        run.resume(algorithm={"inner_lr": 1})


def test_an_rl_learner_adapts_by_acting() -> None:
    small = ["runner.meta_batch=2", "algorithm.rollouts=2", "algorithm.test_rollouts=3", "model.hidden=[4]"]
    run = metarun.experiment("task=rl/navigation", "algorithm=maml_vpg", *small, **QUICK).run()
    agent = run.agent
    assert agent.iteration == 2
    environment = agent.task.batch("test", range(4))
    assert isinstance(environment, metarun.Environment)
    rollouts = agent.adapt(environment)
    assert [rollout.returns().shape for rollout in rollouts] == [(4, 3)] * (1 + run.config["algorithm"]["test_steps"])
    returns = agent.evaluate(environment)["return"]
    torch.testing.assert_close(returns.mean(0)[-1].item(), run.summary["test"]["return"]["mean"])
    assert metarun.evaluate(run)["test"] == run.summary["test"]
    with pytest.raises(metarun.UserError, match=r"in Python: run.agent"):
        run.learner  # noqa: B018
    with pytest.raises(metarun.UserError, match=r"in Python: run.learner"):
        metarun.experiment("task=regression/sinusoid", **QUICK).run().agent  # noqa: B018


def test_components_can_be_objects(capsys: pytest.CaptureFixture[str]) -> None:
    network = Net(width=5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    experiment = metarun.experiment(task=Lines(), model=network, algorithm="maml", **QUICK)
    assert experiment.config["algorithm"]["inner_lr"] == 0.4  # the algorithm's own: nothing is tuned for this task
    run = experiment.run()
    assert run.path.parent.name == "lines-maml"
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    trained = run.learner.algorithm.state_dict()
    assert any(value.shape == (5, 1) for value in trained.values())

    assert main(["eval", str(run.path)]) == 2
    assert capsys.readouterr().err.endswith("cannot rebuild   in Python: metarun.load(RUN, task=...)\n")
    opened = metarun.load(run.path, task=Lines(), model=network)
    assert all(torch.equal(trained[name], value) for name, value in opened.learner.algorithm.state_dict().items())
    assert metarun.evaluate(opened)["test"] == run.summary["test"]

    task = metarun.make("regression/sinusoid", shot=3)
    assert task.shape.shot == 3
    maml = metarun.make("maml", spec=Lines.spec, model=Net(), inner_lr=0.1)
    assert maml.inner_lr == 0.1
    assert metarun.experiment(task=Lines(), algorithm=maml, **QUICK).run().summary["iterations"] == 2


def test_a_class_is_built_with_its_own_defaults_and_rebuilt_by_name() -> None:
    run = metarun.experiment(task=Lines, model=Net, algorithm="maml", **QUICK).run()
    assert run.config["model"] == {"_target_": f"{__name__}.Net"}
    assert run.config["seed"] == 0
    with pytest.raises(metarun.UserError, match="not a component of metarun"):
        metarun.load(run.path).learner  # noqa: B018
    assert metarun.load(run.path, trust=__name__).learner.iteration == 2
    assert metarun.evaluate(run.path, trust=True)["test"] == run.summary["test"]


def test_a_run_directory_is_data() -> None:
    run = metarun.experiment("task=regression/sinusoid", "runner.iterations=0", "runner.test_episodes=0").run()
    config = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(config.replace("metarun.models.mlp.MLP", "os.path.join"))
    with pytest.raises(metarun.UserError, match="not a component of metarun"):
        metarun.load(run.path).learner  # noqa: B018
    (run.path / "config.yaml").write_text(config + "objects: 5\n")
    with pytest.raises(metarun.UserError, match="objects=5"):
        metarun.load(run.path).learner  # noqa: B018
    (run.path / "more.json").symlink_to("/etc/hostname")
    with pytest.raises(metarun.UserError, match="is a link"):
        metarun.load(run.path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: metarun.experiment("task=vision/glyfs"), "did you mean 'vision/glyphs'"),
        (lambda: metarun.experiment(runner={"iteration": 1}), "did you mean 'runner.iterations'"),
        (lambda: metarun.experiment(task=Lines(), algorithm="rl2"), "does not fit this task"),
        (lambda: metarun.experiment(task=3), "an object of metarun.Task"),
        (lambda: metarun.experiment("task=vision/glyphs", task=Lines), "given twice"),
        (
            lambda: metarun.experiment(algorithm=metarun.make("ridge", spec=Lines.spec, model=Net()), model=Net),
            "holds its",
        ),
        (lambda: metarun.make("protonett"), "did you mean 'protonet'"),
        (lambda: metarun.make("conv4"), "conv4 needs spec="),
        (lambda: metarun.make("regression/sinusoid", shot=0), "task.shot=0"),
        (lambda: metarun.load("nowhere"), "no run directory at nowhere"),
    ],
)
def test_errors_are_one_line(call: Any, said: str) -> None:
    with pytest.raises(metarun.UserError) as raised:
        call()
    assert said in str(raised.value).splitlines()[0]
