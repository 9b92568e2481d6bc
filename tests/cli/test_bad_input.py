"""What users get wrong: each mistake one clear line, the right exit status, no traceback, nothing damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.cli import main
from tests.words import has_no_library_word

SINE = "task=regression/sinusoid"
PIECES = "metarun.algorithms.gradient"
QUICK = [
    "runner.iterations=2",
    "runner.test_episodes=2",
    "runner.val_episodes=2",
    "runner.plots=false",
    "tracker.wandb=disabled",
]

# (words, what the message must say)
MISTAKES: list[tuple[str, list[str]]] = [
    # names: commands, options of every group, keys of every section
    ("trian", ["unknown command 'trian'", "did you mean 'train'"]),
    ("resme x", ["did you mean 'resume'"]),
    ("--multrun seed=0,1", ["unknown option '--multrun'", "--multirun"]),
    ("--config-dir", ["needs a directory"]),
    ("--config-dir=nowhere", ["no directory at nowhere"]),
    ("algorithm=MAML", ["unknown algorithm 'MAML'", "did you mean 'maml'"]),
    ("reproduce maml", ["no recipe 'maml'", "there are maml/", ", maml/sinusoid"]),
    ("reproduce maml/sinusoids", ["did you mean 'maml/sinusoid'"]),
    ("list recipes nothing_like_it", ["no name in this list contains 'nothing_like_it'"]),
    ("list combinations maml", ["list takes one of tasks"]),
    ("-m task=vision/glyphs algorithm=maml,protonet algorithm.train_way=5 seed=0,1",
     ["unknown key 'algorithm.train_way'", "this is the run of algorithm=maml seed=0"]),
    ("task=vision/glyph", ["unknown task 'vision/glyph'", "did you mean 'vision/glyphs'", "available:"]),
    ("task=sinusoid", ["unknown task 'sinusoid'", "regression/sinusoid"]),
    ("model=conv5", ["unknown model 'conv5'", "did you mean 'conv4'"]),
    ("algorithm=mamml", ["unknown algorithm 'mamml'", "did you mean 'maml'"]),
    ("runner=defalt", ["unknown runner 'defalt'", "did you mean 'default'"]),
    ("tracker=wandb", ["unknown tracker 'wandb'", "available: default"]),
    ("experiment=maml/none", ["unknown experiment 'maml/none'", "in all)"]),
    ("taks=vision/glyphs", ["unknown key 'taks'", "did you mean 'task'"]),
    ("sed=1", ["unknown key 'sed'", "did you mean 'seed'"]),
    (f"{SINE} task.shots=3", ["unknown key 'task.shots'", "did you mean 'task.shot'"]),
    (f"{SINE} model.hiden=[3]", ["unknown key 'model.hiden'", "did you mean 'model.hidden'"]),
    (f"{SINE} algorithm.inner_lrr=.1", ["unknown key 'algorithm.inner_lrr'", "did you mean 'algorithm.inner_lr'"]),
    (f"{SINE} runner.iteration=3", ["unknown key 'runner.iteration'", "did you mean 'runner.iterations'"]),
    (f"{SINE} tracker.wnadb=offline", ["unknown key 'tracker.wnadb'", "did you mean 'tracker.wandb'"]),
    (f"{SINE} algoritm.inner_lr=.1", ["unknown key 'algoritm.inner_lr'", "did you mean 'algorithm'"]),
    (f"{SINE} +algorithm.momentum=.9", ["unknown key 'algorithm.momentum'", "allowed: adapts, rule"]),
    (f"{SINE} +runner.epochs=3", ["unknown key 'runner.epochs'"]),
    (f"{SINE} +foo=3", ["unknown key 'foo'"]),
    (f"{SINE} ~algorithm.inner_lr", ["algorithm.inner_lr is missing"]),
    # names, types and classes inside a section of a section
    (f"{SINE} algorithm.adapts.prat=head", ["unknown key", "did you mean 'algorithm.adapts.part'"]),
    (f"{SINE} +algorithm.outer.first_ordre=true", ["'algorithm.outer.first_ordre'", "'first_order'"]),
    (f"{SINE} ~algorithm.outer.first_order", ["algorithm.outer.first_order is missing"]),
    (f"{SINE} algorithm.adapts.part=hed", ["algorithm.adapts.part=hed", "did you mean 'head'"]),
    (f"{SINE} algorithm.rule=sgd", ["algorithm.rule has no _target_"]),
    (f"{SINE} algorithm.rule._target_={PIECES}.rules.SDG", ["algorithm.rule._target_", "did you mean 'SGD'"]),
    (f"{SINE} algorithm.rule._target_={PIECES}.losses.TaskLoss", ["rule._target_", "not a subclass", "pieces.Rule"]),
    (f"{SINE} algorithm=cavia algorithm.adapts.layer=layer.0", ["has no such layer", "did you mean 'layers.0'"]),
    (f"{SINE} algorithm=imaml algorithm.inner_steps=0", ["algorithm.inner_steps=0", "needs an inner loop"]),
    (f"{SINE} algorithm.adapts.part=norm", ["algorithm.adapts.part=norm", "no parameters there"]),
    # words that are no overrides
    (f"{SINE} seed=", ["seed"]),
    (f"{SINE} seed=[", ["["]),
    (f"{SINE} iterations", ["iterations"]),
    ("=3", []),
    # types
    (f"{SINE} seed=abc", ["seed=abc", "valid integer"]),
    (f"{SINE} seed=1.5", ["seed=1.5", "valid integer"]),
    (f"{SINE} runner.iterations=many", ["runner.iterations=many", "valid integer"]),
    (f"{SINE} runner.iterations=null", ["runner.iterations=null", "valid integer"]),
    (f"{SINE} runner.plots=maybe", ["runner.plots=maybe", "valid boolean"]),
    (f"{SINE} algorithm.inner_steps=abc", ["algorithm.inner_steps=abc", "valid integer"]),
    (f"{SINE} algorithm.inner_steps=true", ["algorithm.inner_steps=True", "valid integer"]),
    (f"{SINE} algorithm.outer.first_order=1", ["algorithm.outer.first_order=1", "valid boolean"]),
    (f"{SINE} algorithm.outer_lr=fast", ["algorithm.outer_lr=fast", "valid number"]),
    (f"{SINE} model.hidden=40", ["model.hidden=40"]),
    (f"{SINE} model.hidden=[40,x]", ["model.hidden", "[1] should be a valid integer"]),
    (f"{SINE} tracker.tags=word", ["tracker.tags=word"]),
    # ranges and choices
    (f"{SINE} seed=-1", ["seed=-1", "greater than or equal to 0"]),
    (f"{SINE} seed=99999999999999999999", ["seed=99999999999999999999", "less than or equal to"]),
    (f"{SINE} seed=1e400", ["seed=inf", "valid integer"]),
    (f"{SINE} runner.meta_batch=1000000000000", ["runner.meta_batch=1000000000000", "less than or equal to"]),
    (f"{SINE} algorithm.inner_lr=1e400", ["algorithm.inner_lr=inf", "should be finite"]),
    (f"{SINE} algorithm.inner_lr=nan", ["algorithm.inner_lr=nan", "should be"]),
    (f"{SINE} runner.threads=-1", ["runner.threads=-1", "greater than or equal to 1"]),
    (f"{SINE} runner.device=cuda:99", ["runner.device=cuda:99", "this machine has"]),
    (f"{SINE} runner.device=xpu", ["runner.device=xpu"]),
    (f"{SINE} runner.device=foo", ["runner.device=foo", "allowed: auto, cpu"]),
    (f"{SINE} runner.device=", ["runner.device="]),
    (f"{SINE} runner.iterations=-5", ["runner.iterations=-5", "greater than or equal to 0"]),
    (f"{SINE} runner.meta_batch=0", ["runner.meta_batch=0", "greater than or equal to 1"]),
    (f"{SINE} runner.threads=0", ["runner.threads=0", "greater than or equal to 1", "null"]),
    (f"{SINE} runner.device=gpu", ["runner.device=gpu", "allowed: auto, cpu, cuda"]),
    (f"{SINE} runner.device=cuda:7", ["runner.device=cuda:7", "this machine has"]),
    (f"{SINE} runner.precision=float16", ["runner.precision=float16", "'bfloat16' or 'tf32'", "mean 'bfloat16'"]),
    ("task=rl/bandit runner.precision=bfloat16", ["runner.precision=bfloat16", "control", "float32 or float64"]),
    (f"{SINE} runner.select=first", ["runner.select=first", "'best' or 'last'"]),
    (f"{SINE} tracker.wandb=onlin", ["tracker.wandb=onlin", "did you mean 'online'"]),
    (f"{SINE} algorithm.inner_lr=0", ["algorithm.inner_lr=0", "greater than 0"]),
    (f"{SINE} algorithm.norm=running", ["algorithm.norm=running", "'transductive', 'support' or 'frozen'"]),
    (f"{SINE} model.activation=gelu", ["model.activation=gelu", "'relu', 'tanh' or 'sigmoid'"]),
    (f"{SINE} task.shot=0", ["task.shot=0", "greater than or equal to 1"]),
    (f"{SINE} name=a/b", ["name='a/b'", "cannot contain '/'"]),
    # combinations that do not fit, with what does
    (f"{SINE} algorithm=protonet", ["does not fit this task, which is regression", "what fits: algorithm=", "maml"]),
    (f"{SINE} algorithm=protomaml", ["does not fit this task, which is regression", "what fits: algorithm=", "maml"]),
    (f"{SINE} model=conv4", ["the model reads image", "what fits:", "model=", "mlp"]),
    ("task=rl/navigation algorithm=protonet", ["classification", "control", "maml_trpo"]),
    ("task=rl/bandit model=mlp_policy", ["recurrent_policy"]),
    ("task=rl/navigation model=conv4", ["policy"]),
    ("task=nlp/intents model=conv4", ["the model reads image", "text", "ngram_bag"]),
    ("task=vision/glyphs model=gru_policy", ["recurrent_policy"]),
    # impossible episodes
    ("task=vision/glyphs task.way=1", ["task.way=1"]),
    ("task=vision/glyphs task.way=5000", ["way=5000 is more than the", "classes of the"]),
    ("task=vision/glyphs task.shot=500", ["shot=500 + query=", "is more than the"]),
    ("task=vision/glyphs algorithm.train_way=5000", ["way=5000 is more than the", "'train'"]),
    ("task=vision/glyphs model.depth=7", ["model.depth=7", "below one pixel"]),
    # a user's own class
    (f"{SINE} model._target_=nowhere.Net", ["_target_", "nowhere"]),
    (f"{SINE} model._target_=metarun.models.mlp.MPL", ["has no class 'MPL'", "did you mean 'MLP'"]),
    (f"{SINE} model._target_=MLP", ["'MLP' is not an import path"]),
    # data that is not there
    ("task=vision/folder task.root=nowhere", ["nowhere"]),
    ("task=nlp/text task.file=nowhere.csv", ["nowhere.csv"]),
    # commands on runs
    ("resume", ["resume needs a run directory"]),
    ("resume nowhere", ["no run directory at nowhere"]),
    ("resume .", ["is not a run directory"]),
    ("eval nowhere", ["no run directory at nowhere"]),
    ("report", ["report needs run directories", "metarun report DIR..."]),
    ("report nowhere", ["nowhere does not exist"]),
    ("report .", ["no run in ."]),
    ("report . ouy=page", ["unknown key 'ouy'", "did you mean 'out'"]),
    ("report . out=", ["out= needs a value"]),
    ("report . --out page", ["unknown option '--out'; keys have no dashes: out=VALUE"]),
    ("show", ["show takes a name"]),
    ("show mamml", ["no option is called 'mamml'", "did you mean 'maml'"]),
    ("list task", ["unknown list 'task'", "did you mean 'tasks'"]),
    ("list tasks task=rl/maze", ["cannot be filtered by task="]),
    ("list algorithms taks=rl/maze", ["list: unknown key 'taks' - did you mean 'task'?"]),
    ("list algorithms task=rl/maz", ["unknown task 'rl/maz' - did you mean 'rl/maze'?"]),
    ("list models kind=contrl", ["unknown kind 'contrl' - did you mean 'control'?"]),
    ("list recipes status=pased", ["list: status=pased - did you mean 'passed'?"]),
    ("list task=rl/maze", ["metarun list algorithms task=rl/maze"]),
    ("doctor now", ["doctor takes no 'now'", "usage: metarun doctor"]),
    ("eval --vall", ["unknown option '--vall' - did you mean '--val'?", "`metarun eval --help`"]),
    ("adapt r --steps=x", ["--steps needs an integer of at least 0, not 'x'"]),
    ("--task.shot=5", ["unknown option '--task.shot=5'; keys have no dashes: task.shot=5"]),
    ("report . --quiet=1", ["unknown option '--quiet=1'"]),
    # what other programs built on Hydra have
    ("+seed=3", ["seed exists already"]),
    ("hydra.run.dir=x", ["hydra.run.dir=x", "runner.directory"]),
    ("hydra.searchpath=[x]", ["--config-dir"]),
    ("hydra/sweeper=x", ["metarun search"]),
    ("hydra.verbose=true", ["-v prints"]),
    ("hydra/job_logging=none", ["-q prints results"]),
    ("hydra/launcher=basic", ["this key is for sweeps", "-m"]),
    ("hydra.job.chdir=true", ["it would have no effect"]),
    ("tuned=x", ["follows from the task and the algorithm"]),
    ("algorithm=null", ["a run needs an option of algorithm", "maml"]),
    ("~task", ["a run needs an option of task"]),
    ("algorithm=[maml]", ["unknown algorithm '[maml]'"]),
    ("-sc", ["-sc needs one of install=bash"]),
    ("-sc install=foo", ["allowed: install=bash, install=zsh, install=fish"]),
    ("-sc query=bash", ["-sc install=SHELL"]),
    ("--cfg job task=typo", ["unknown task 'typo'"]),
    ("--cfg jobs", ["--cfg jobs - did you mean 'job'?", "allowed: job, all"]),
    ("--cfg", ["--cfg needs one of job, all"]),
    ("--cfg job --package x", ["--package x: no such key"]),
    ("--resolve", ["--cfg job --resolve"]),
    ("--info task=typo", ["unknown task 'typo'"]),
    ("--info=x", ["--info x", "defaults-tree"]),
    ("-m --cfg job", ["exclude each other"]),
    ("--config-path x", ["no option --config-path", "--config-dir"]),
    ("-cn x", ["no option -cn", "--config-dir"]),
    ("--experimental-rerun x", ["metarun resume RUN"]),
    # sweeps of what is no list of values, or of too many
    ("-m seed=range(0,0)", ["seed=range(0,0): the range is empty"]),
    ("-m seed=range(0,3,0)", ["a step other than 0"]),
    ("-m seed=range(0,100000000)", ["100,000,000 runs", "at most 10,000"]),
    ("-m seed=range(0,200) algorithm.inner_lr=range(0,1,0.01)", ["200 x 100 runs", "at most 10,000"]),
    ("-m seed=interval(0,1)", ["infinitely many values", "range(START,STOP,STEP)", "metarun search"]),
    ("-m algorithm=glob(mamlx*)", ["no algorithm matches", "maml"]),
    ("-m seed=glob(m*)", ["algorithm=glob(maml*)"]),
    ("-m seed=extend_list(1,2)", ["'extend_list', which is not a function"]),
    ("-m algorithm=maml,mamml", ["unknown algorithm 'mamml'"]),
    ("-m hydra/launcher=foo seed=0,1", ["unknown hydra/launcher 'foo'", "submitit_slurm"]),
    ("-m hydra.launcher.foo=3 seed=0,1", ["unknown key 'hydra.launcher.foo'"]),
    ("-m hydra.sweep.dir=a,b seed=0,1", ["one value of this key"]),
    # sweeps are checked before the first job starts
    (f"-m {SINE} seed=0,x", ["seed=x", "valid integer"]),
    (f"-m {SINE} algorithm=maml,protonet", ["does not fit"]),
]  # fmt: skip


def complaint(words: list[str], capsys: pytest.CaptureFixture[str], status: int = 2) -> str:
    assert main(words) == status
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    # A run that had begun may have said where it lies before it failed.
    told, _, said = said.rpartition("metarun: ")
    assert all(line.startswith(("run directory", "continuing after")) for line in told.splitlines()), told
    assert 1 <= len(said.splitlines()) <= 3, said
    assert has_no_library_word(said)
    return said


def test_there_are_at_least_sixty_mistakes() -> None:
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[m[0].replace("/", ".") for m in MISTAKES])
def test_mistake(words: str, says: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = complaint(words.split(), capsys)
    for part in says:
        assert part in said, said
    assert len(said) < 2000, "a line that long has too many names"
    assert not list(tmp_path.rglob("config.yaml")), "a refused run must leave nothing behind"


# a file of the user's own -> what the message must say
FILES = {
    "broken": ("_target_: x\n  y: [1\n", ["broken.yaml, line 2: not YAML"]),
    "twice": ("a: 1\na: 2\n", ["twice.yaml, line 2", "duplicate key a"]),
    "list": ("- 1\n", ["list.yaml: the file of an option must have the form key: value"]),
    "empty": ("", ["algorithm has no _target_"]),
    "latin": (b"a: \xfc\n", ["latin.yaml: not UTF-8"]),
    "binary": (b"\xff\xfe\x00", ["binary.yaml: not UTF-8"]),
    "circle": ("defaults:\n- back\n", ["algorithm/circle -> algorithm/back -> algorithm/circle"]),
    "back": ("defaults:\n- circle\n", ["algorithm/back -> algorithm/circle -> algorithm/back"]),
    "itself": ("defaults:\n- itself\n", ["algorithm/itself -> algorithm/itself"]),
    "number": ("defaults: 3\n", ["number.yaml: defaults is a list of options, not 3"]),
    "missing": ("defaults:\n- mamml\n", ["algorithm/missing: unknown algorithm 'mamml' - did you mean 'maml'?"]),
    "group": ("defaults:\n- /modl: conv4\n", ["algorithm/group: unknown modl 'conv4'"]),
    "override": ("defaults:\n- override /modl: conv4\n", ["algorithm/override", "'modl'"]),
    "unresolved": ("_target_: ${nope}\n", ["algorithm._target_: interpolates 'nope'"]),
    "open": ("_target_: ${nope\n", ["_target_", "cannot be resolved"]),
    "python": ("a: !!python/object/apply:os.system [ls]\n", ["python.yaml, line 1"]),
    "alias": ("a: &x [*x]\n", ["circle"]),
    "link": (None, ["unknown algorithm 'link'"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_users_own(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "own" / "algorithm"
    folder.mkdir(parents=True)
    (folder / "link.yaml").symlink_to("/nowhere")
    for each, (content, _) in FILES.items():
        if content is not None:
            (folder / f"{each}.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    said = complaint(["--config-dir", "own", f"algorithm={name}"], capsys)
    assert all(part in said for part in FILES[name][1]), said


def test_a_recipe_without_its_first_line_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("seed: 3\n")
    assert "# @package _global_" in complaint(["--config-dir", "own", "experiment=mine"], capsys)


def test_values_mean_the_same_to_every_command(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["algorithm.inner_lr=1e-3"], ["task.test_shots=[3]", "algorithm.test_steps=${task.shot}"]):
        assert main(["eval", str(finished), *words, "runner.test_episodes=2"]) == 0
    assert main(["resume", str(finished), "runner.iterations=3", "tracker.tags=[é,'1']"]) == 0
    changes = [json.loads(path.read_text())["changes"] for path in sorted(finished.glob("evaluations/*.json"))]
    assert [each.get("algorithm.inner_lr") for each in changes] == [1e-3, None]
    assert (changes[1]["task.test_shots"], changes[1]["algorithm.test_steps"]) == ([3], 5)


@pytest.fixture(scope="module")
def _done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("done")
    assert main([SINE, *QUICK, "runner.threads=1", "name=done", f"runner.directory={root}"]) == 0
    return root / "done"


@pytest.fixture
def finished(_done: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to damage."""
    shutil.copytree(_done, tmp_path / "outputs" / "done")
    (config,) = tmp_path.glob("outputs/done/*/config.yaml")
    return config.parent


def unchanged(run: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in ("metarun.log", ".lock")}


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


DAMAGES: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "truncated checkpoint": (
        lambda run: os.truncate(run / "checkpoints/last.pt", 500),
        ["resume", "runner.iterations=4"], "last.pt is damaged"),
    "empty checkpoint": (
        lambda run: os.truncate(run / "checkpoints/last.pt", 0), ["eval"], "last.pt is damaged"),
    "missing checkpoint": (
        lambda run: [p.unlink() for p in run.glob("checkpoints/*.pt")], ["eval"], "no checkpoint at"),
    "config is not YAML": (
        lambda run: (run / "config.yaml").write_text("a: [1"), ["resume"], "config.yaml cannot be read"),
    "config is empty": (
        lambda run: (run / "config.yaml").write_text(""), ["resume"], "is empty or not a configuration"),
    "config was edited wrongly": (
        lambda run: edit(run / "config.yaml", "meta_batch: 25", "meta_batch: x"),
        ["resume"], "runner.meta_batch=x"),
    "meta.json is damaged": (
        lambda run: (run / "meta.json").write_text("{"), ["resume"], "meta.json is damaged"),
    "another model": (
        lambda run: edit(run / "config.yaml", "- 40", "- 41"),
        ["eval"], "this run's learner does not fit: its net.0"),
    "a key that resume cannot change": (
        lambda run: None, ["resume", "task.shot=2"], "resume cannot change 'task.shot'"),
    "a misspelt key of resume": (
        lambda run: None, ["resume", "runner.iteratons=9"], "did you mean 'runner.iterations'"),
    "several values": (lambda run: None, ["eval", "task.shot=1,2"], "task.shot=1,2 has several values"),
    "a group": (lambda run: None, ["eval", "algorithm=anil"], "eval cannot change 'algorithm'"),
    "a family that does not exist": (
        lambda run: None, ["eval", "task=vision/glyph"], "unknown task 'vision/glyph' - did you mean 'vision/glyphs'?"),
    "a family of another kind": (lambda run: None, ["eval", "task=vision/glyphs"],
        "task=vision/glyphs: this family's kind is classification, and the run's is regression"),
    "a value that is none": (
        lambda run: None, ["resume", "runner.iterations=[9"], "the [ at position 19 is not closed"),
    "a key deleted": (lambda run: None, ["eval", "~task.shot"], "task.shot is missing"),
    "a key added": (lambda run: None, ["eval", "+task.shots=3"], "unknown key 'task.shots'"),
    "a misspelt key of eval": (lambda run: None, ["eval", "task.shots=9"], "did you mean 'task.shot'"),
    "fewer iterations": (lambda run: None, ["resume", "runner.iterations=1"], "can only be raised"),
    "an unknown option of eval": (lambda run: None, ["eval", "--test"], "unknown option '--test'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_run(damage: str, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm, (command, *rest), says = DAMAGES[damage]
    harm(finished)
    before = unchanged(finished)
    assert says in complaint([command, str(finished), *rest], capsys)
    after = unchanged(finished)
    for path in before:
        assert after[path] == before[path], path


def test_lost_rows(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(finished / "metrics.jsonl", 3)
    said = complaint(["resume", str(finished), "runner.iterations=4"], capsys, status=1)
    assert "is shorter than when its checkpoint was written" in said


def test_a_run_directory_in_use(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from metarun.tracking.rundir import RunDirectory

    with RunDirectory.open(finished).locked():
        before = unchanged(finished)
        said = complaint(["resume", str(finished), "runner.iterations=4"], capsys)
        assert "is in use by another running process" in said
        assert unchanged(finished) == before


def test_unwritable_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    said = complaint([SINE, *QUICK, f"runner.directory={tmp_path}/file/sub"], capsys)
    assert "cannot create the run directory" in said
    assert "runner.directory" in said


def test_nan_stops_with_the_iteration_and_the_likely_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        SINE,
        *QUICK,
        "runner.iterations=20",
        "runner.log_every=1",
        "algorithm.inner_lr=1e30",
        "name=wild",
    ]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "became NaN or infinite at iteration" in said
    assert "algorithm.inner_lr" in said
    (status,) = tmp_path.glob("outputs/wild/*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"


def test_no_traceback_from_the_installed_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "metarun", "task=nothing"], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("metarun: unknown task 'nothing'")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DEBUG", "1")
    with pytest.raises(Exception, match="unknown task"):
        main(["task=nothing"])
