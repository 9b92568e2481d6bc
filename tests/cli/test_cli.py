"""The command line as a user meets it: quick answers, every verb, sweeps, own configuration, W&B through a run."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml

import metarun
from metarun.cli import main
from metarun.runs.history import runs_of_sweep
from metarun.tracking.rundir import RunDirectory

sys.path.insert(0, str(Path(__file__).parents[1] / "tracking"))

from wandb_file import is_media, read
from wandb_server import API_KEY, WandbServer

SINE = ["task=regression/sinusoid", "runner.meta_batch=4", "runner.iterations=20", "runner.validate_every=10",
        "runner.val_episodes=10", "runner.test_episodes=20", "runner.log_every=5", "runner.plots=false"]  # fmt: skip


def runs(root: Path) -> list[Path]:
    return sorted(p.parent for p in root.glob("outputs/*/*/config.yaml"))


SLOW_TO_IMPORT = {"torch", "wandb", "matplotlib", "rich", "PIL", "hydra", "omegaconf", "numpy", "pydantic", "yaml"}


@pytest.mark.parametrize(
    ("words", "imports", "status"),
    [
        (["--help"], set(), 0),
        (["report", "--help"], set(), 0),
        (["report", "nowhere"], {"yaml", "numpy", "pydantic"}, 2),
        (["list"], {"yaml", "pydantic", "numpy"}, 0),
        (["task=regression/sinusoid", "algorithm.inner_lrr=1"], {"yaml", "hydra", "omegaconf", "pydantic"}, 2),
    ],
)
def test_quick_answers_import_only_what_they_need(words: list[str], imports: set[str], status: int) -> None:
    """Most of the time that an answer takes is that of its imports."""
    script = (
        "import sys; from metarun.cli import main; status = main(sys.argv[1:]); "
        f"print(*sorted({SLOW_TO_IMPORT} & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert {*done.stderr.splitlines()[-1].split()} <= imports


def test_a_run_leaves_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SINE, "runner.plots=true", "seed=3"]) == 0
    said = capsys.readouterr()
    assert "meta-test, 20 held-out tasks" in said.out
    assert "after adaptation steps" in said.out
    (run,) = runs(tmp_path)
    assert run.parent.name == "sinusoid-maml"
    assert run.name.endswith("_s3")
    names = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {"config.yaml", "meta.json", "status.json", "metrics.jsonl", "summary.json", "test.npz", "metarun.log",
            "checkpoints/last.pt", "checkpoints/best.pt", "plots/learning_curve.png", "plots/adaptation_curve.png",
            "plots/what_was_learned.png"} <= names  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert summary["iterations"] == 20
    assert summary["seed"] == 3
    assert set(summary["test"]["mse"]) == {"mean", "ci95", "n"}
    assert len(summary["adaptation"]) == 11
    assert {"norm", "shot", "test_episodes", "selection"} <= set(summary["protocol"])
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    meta = json.loads((run / "meta.json").read_text())
    assert meta["choices"]["task"] == "regression/sinusoid"
    assert meta["threads"] >= 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["iteration"] for r in rows if "train/mse" in r] == [5, 10, 15, 20]
    assert [r["iteration"] for r in rows if "val/mse" in r] == [10, 20]
    assert rows[-1]["test/mse"] == summary["test"]["mse"]["mean"]

    # What a report needs.
    episodes = RunDirectory(run).episodes()["mse"]
    assert episodes.shape == (20, 11)
    points = [p["mean"] for p in summary["adaptation"]]
    assert episodes.astype(float).mean(0).tolist() == pytest.approx(points, rel=1e-12)
    assert (summary["metric"], summary["higher_is_better"]) == ("mse", False)
    assert summary["parameters"] == 40 + 40 + 40 * 40 + 40 + 40 + 1
    assert 50 < summary["peak_mb"] < 20_000
    assert summary["cpu_s"] > 0
    first, last = summary["validated"]
    assert (first["iteration"], last["iteration"]) == (10, 20)
    assert 0 < first["seconds"] <= last["seconds"] <= summary["wall_s"] + 0.1
    assert set(summary["protocol_of_learner"]) < set(summary["protocol"])
    capsys.readouterr()
    assert main(["report", str(tmp_path / "outputs")]) == 0
    assert "1 finished run of 1 configuration" in capsys.readouterr().out


def test_eval_under_another_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(SINE)
    (run,) = runs(tmp_path)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert main(["eval", str(run), "task.shot=9", "runner.test_episodes=7", "algorithm.test_steps=2"]) == 0
    assert "7 held-out tasks" in capsys.readouterr().out
    (path,) = run.glob("evaluations/*.json")
    result = json.loads(path.read_text())
    assert result["changes"] == {"task.shot": 9, "runner.test_episodes": 7, "algorithm.test_steps": 2}
    assert result["protocol"]["shot"] == 9
    assert len(result["adaptation"]) == 3
    assert all(p.read_bytes() == content for p, content in before.items())
    # The same protocol again gives the run's own number.
    assert main(["eval", str(run)]) == 0
    again = json.loads(max(run.glob("evaluations/*.json")).read_text())
    assert again["test"] == json.loads((run / "summary.json").read_text())["test"]


def test_resume_of_a_finished_run_and_longer_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(SINE)
    (run,) = runs(tmp_path)
    assert main(["resume", str(run)]) == 0
    assert "the run had finished" in capsys.readouterr().out
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["runner"]["devices"], config["task"]["frequency"]  # as in a run from before there were these keys
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    meta = json.loads((run / "meta.json").read_text())
    (run / "meta.json").write_text(json.dumps({**meta, "versions": {**meta["versions"], "torch": "2.1.0"}}))
    capsys.readouterr()
    assert main(["resume", str(run), "runner.iterations=30"]) == 0
    assert f"may differ from here on: torch 2.1.0 -> {version('torch')}" in capsys.readouterr().err
    (resumed,) = json.loads((run / "meta.json").read_text())["resumed"]
    assert (resumed["iteration"], resumed["versions"]["torch"]) == (20, version("torch"))
    main([*SINE, "runner.iterations=30", "name=straight"])
    (straight,) = (r for r in runs(tmp_path) if r.parent.name == "straight")
    assert (run / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()


def test_sweep_runs_every_combination_in_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["-m", *SINE, "seed=0,1"]) == 0
    made = runs(tmp_path)
    assert sorted(r.name[-3:] for r in made) == ["_s0", "_s1"]
    groups = {json.loads((r / "meta.json").read_text())["group"] for r in made}
    assert len(groups) == 1
    offline = [read(next(r.glob("wandb/offline-run-*/*.wandb"))) for r in made]
    assert len({o.run_id for o in offline}) == 2
    assert {o.group for o in offline} == groups


def test_a_failing_job_does_not_end_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", *SINE, "algorithm.inner_lr=1e30,0.001", "runner.log_every=1", "algorithm.test_steps=1"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "1 of 2 runs failed" in told
    assert len(list(tmp_path.glob("outputs/*/*/summary.json"))) == 1
    log = Path(told.rsplit("log: ", 1)[1].strip())
    assert "RunFailed" in log.read_text()

    # Again: what was finished is left as it is, what failed is tried again.
    assert main(words) == 1
    again = capsys.readouterr().err
    assert again.count("metarun: done before: ") == 1
    assert "1 of 2 runs failed" in again
    (done,) = tmp_path.glob("outputs/*/*/summary.json")
    noted = max(tmp_path.glob("outputs/multirun/*"))
    assert list(runs_of_sweep(noted))[-1] == done.parent


def test_a_sweep_may_fix_what_the_default_algorithm_lacks(tmp_path: Path) -> None:
    base = [word for word in SINE if not word.startswith("algorithm")]
    assert main(["-m", *base, "task=vision/glyphs", "model=mlp", "model.hidden=[8,8]", "algorithm=maml,fomaml",
                 "algorithm.inner_steps=2", "task.test_ways=[]", "runner.iterations=2",
                 "runner.validate_every=2"]) == 0  # fmt: skip
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in runs(tmp_path)]
    assert [(c["algorithm"]["inner_steps"], c["model"]["hidden"]) for c in configs] == 2 * [(2, [8, 8])]


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-m", *SINE, "seed=0,1", "name=both"]
    assert main([*SINE, "seed=1", "name=both"]) == 0
    (run,) = runs(tmp_path)
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "summary.json").unlink()  # as if it had been stopped before its test
    assert main(words) == 0
    assert "continuing after iteration" in capsys.readouterr().err
    assert len(runs(tmp_path)) == 2
    assert (run / "summary.json").is_file()
    assert (run / "metrics.jsonl").read_bytes() == whole


def test_print_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=regression/sinusoid", "--cfg", "job", "--resolve"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["algorithm"]["inner_lr"] == 0.001
    assert config["runner"]["directory"] == "outputs"


def test_completion(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", "metarun task=")
    monkeypatch.setenv("COMP_POINT", "13")
    assert main(["-sc", "query=bash"]) == 0
    assert "task=regression/" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "metarun re")
    assert main(["-sc", "query=bash"]) == 0
    assert "resume" in capsys.readouterr().out.split()


def test_own_configuration_adds_and_shadows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "runner").mkdir()
    (tmp_path / "mynet.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self, *, width: int):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(1, width), torch.nn.Tanh())\n"
    )
    (own / "model" / "mine.yaml").write_text("_target_: mynet.Net\nwidth: 8\n")
    shipped = yaml.safe_load((Path(__file__).parents[2] / "conf/runner/default.yaml").read_text())
    (own / "runner" / "default.yaml").write_text(yaml.safe_dump(shipped | {"checkpoint_seconds": 7}))
    assert main(["--config-dir", str(own), *SINE, "model=mine", "name=own"]) == 0
    (run,) = runs(tmp_path)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"] == {"_target_": "mynet.Net", "width": 8}
    assert config["runner"]["checkpoint_seconds"] == 7
    capsys.readouterr()
    assert main(["--config-dir", str(own), *SINE, "model=mine", "model.width=wide"]) == 2
    assert "model.width=wide: should be a valid integer" in capsys.readouterr().err
    assert main([*SINE, "model=mine"]) == 2


def block_of_the_manual(name: str, topic: str = "extending") -> str:
    """The example file ``name`` as a page of the manual prints it."""
    page = (Path(metarun.__file__).parent / "docs" / f"{topic}.md").read_text(encoding="utf-8")
    return page.split(f"# {name}\n")[1].split("```")[0]


def test_own_update_rule_of_the_manual(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_conf" / "algorithm").mkdir(parents=True)
    for name in ("my_rules.py", "my_conf/algorithm/sign.yaml"):
        (tmp_path / name).write_text(block_of_the_manual(name))
        assert len(block_of_the_manual(name).splitlines()) <= 30
    own = ["--config-dir", "my_conf", *SINE, "algorithm=sign", "algorithm.adapts.part=head", "name=own"]
    assert main(own) == 0
    (run,) = runs(tmp_path)
    state = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert state["algorithm"]["parameters"]["rule.rate"] != pytest.approx(0.01, abs=1e-7)
    capsys.readouterr()
    assert main([*own, "+algorithm.rule.ratee=1"]) == 2
    assert "unknown key 'algorithm.rule.ratee'" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said
    assert "BAD" not in said
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"extra (\S+)", said)) == extras.keys() - {"dev"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    import wandb

    with WandbServer() as serving:
        monkeypatch.delenv("WANDB_MODE")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("WANDB_BASE_URL", serving.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        monkeypatch.setenv("WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL", "1")  # rows are sent every second, not every 15
        wandb.teardown()
        yield serving
    wandb.teardown()


def test_offline_files_hold_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(SINE) == 0
    (run,) = runs(tmp_path)
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    sent = [{k: v for k, v in row.items() if not k.startswith("_")} for row in read(file).history]
    assert [row for row in sent if not is_media(row)] == recorded


def test_the_server_stops_in_mid_run(
    tmp_path: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from metarun.training import loop

    original = loop.validate

    def validate(*arguments: object) -> None:
        original(*arguments)  # type: ignore[arg-type]
        end = time.monotonic() + 240
        while not any(run.history for run in server.runs.values()):  # so that the run is well on its way
            assert time.monotonic() < end, "no row came"
            time.sleep(0.02)
        server.stop()

    monkeypatch.setattr(loop, "validate", validate)
    assert main([*SINE, "tracker.finish_timeout=5", "tracker.init_timeout=15"]) == 0
    assert "wandb sync" in capsys.readouterr().err
    (run,) = runs(tmp_path)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 7
    assert json.loads((run / "status.json").read_text())["state"] == "finished"


def test_own_environments_of_the_readme(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'metarun[rl]'")
    (tmp_path / "my_poles.py").write_text(block_of_the_manual("my_poles.py", "tasks"))
    assert len(block_of_the_manual("my_poles.py", "tasks").strip().splitlines()) <= 20
    small = ["runner.iterations=2", "runner.meta_batch=3", "runner.val_episodes=2", "runner.test_episodes=2"]
    words = ["task.sampler=my_poles", "task.episodes=2", "algorithm=rl2", "model=gru_policy", "task.horizon=20"]
    assert main(["task=rl/gym", *words, *small, "tracker.wandb=disabled", "name=own"]) == 0
    (run,) = runs(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert 2 <= summary["test"]["return"]["mean"] <= 40
    assert len(summary["adaptation"]) == 2
    assert (run / "plots" / "film.gif").is_file() or not importlib.util.find_spec("pygame")


def test_an_agent_learns_in_context_in_ones_own_environments(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'metarun[rl]'")
    (tmp_path / "my_poles.py").write_text(block_of_the_manual("my_poles.py", "tasks"))
    own = ["task=rl/gym", "task.sampler=my_poles", "task.horizon=20", "tracker.wandb=disabled"]
    learners = ["algorithm=maml_ppo", "algorithm.inner_steps=0", "algorithm.rollouts=2", "model=mlp_policy"]
    assert main(["collect", *own, *learners, "runner.iterations=2", "--tasks=3", "--out=poles"]) == 0
    agent = ["algorithm=ad", "model=transformer_policy", "algorithm.histories=poles", "algorithm.context=20"]
    small = ["runner.iterations=2", "runner.meta_batch=3", "runner.test_episodes=2", "runner.eval_batch=2"]
    assert main([*own, *agent, *small, "task.episodes=2", "runner.validate_every=0", "runner.plots=false"]) == 0
    (run,) = runs(tmp_path)
    acting = metarun.load(run, trust="my_poles").agent
    returns = acting.evaluate(acting.task.batch("test", range(3)))["episode_return"]
    assert returns.shape[0] == 3
    assert (returns > 0).all()
