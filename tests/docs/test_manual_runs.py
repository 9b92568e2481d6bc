"""Every command of the manual runs, with its own words but for a budget of seconds."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.cli import main
from metarun.cli.arguments import parse
from metarun.cli.commands import COMMANDS
from metarun.cli.dispatch import split
from tests.docs.test_manual import ALL

BUDGET = {
    "runner.iterations": "2", "runner.minutes": "null", "runner.meta_batch": "1", "runner.validate_every": "1",
    "runner.val_episodes": "2", "runner.test_episodes": "2", "runner.log_every": "1", "runner.tune_above": "1e9",
    "runner.threads": "1", "runner.device": "cpu",
}  # fmt: skip
"""What is given to each command in place of its own words for the same keys."""
ELSEWHERE = {
    "task.sampler=my_poles": "tests/cli/test_cli.py: own environments, as the page writes them",
    "--trust=my_module": "tests/cli/test_users_code.py: a run of a user's own class",
    "metarun serve": "tests/serve/test_serve.py: a real server and browser",
    "-sc": "tests/cli/test_completion.py: in real shells",
    "hydra/launcher=submitit_slurm": "tests/cli/test_submitit.py: an emulated SLURM",
    "algorithm.histories=": "tests/cli/test_collect.py: learning from collected histories",
    "model=vision_encoder": "tests/test_contracts.py: with a small vision transformer",
    "experiment=ad/": "tests/cli/test_collect.py and tests/recipes: histories of the recipe's length take minutes",
    "workloads=end_to_end": "tests/cli/test_bench.py: on small workloads",
    "workloads=rollouts": "tests/cli/test_bench.py: on small workloads",
    "workloads=runs": "tests/cli/test_bench.py: on small workloads",
    "model=timm": "tests/models/test_timm.py: where timm is installed",
    "tracker.wandb=online": "tests/tracking/test_wandb.py: to a server on this machine",
}
"""Words whose commands other tests run, and which."""
RUNS = {
    "glyphs": ["task=vision/glyphs", "algorithm=protonet", "name=glyphs-protonet"],
    "maml": ["task=vision/glyphs", "algorithm=maml", "name=glyphs-maml"],
    "pretrain": ["task=vision/glyphs", "algorithm=pretrain", "name=glyphs-pretrain"],
    "texts": ["task=nlp/intents", "algorithm=protonet", "model=ngram_bag", "name=texts"],
    "numbers": ["task=regression/sinusoid", "algorithm=maml", "name=numbers"],
    "curves": ["experiment=neural_process/cnp", "name=curves"],
    "acting": ["experiment=maml/navigation", "name=acting"],
    "optimizer": ["task=regression/quadratics", "algorithm=l2l_mlp", "name=optimizer"],
    "tables": ["task=tabular/prior", "name=tables"],
    "domains": [
        "task=vision/domains",
        "task.domains=[vision/glyphs,vision/omniglot]",
        "task.train=[glyphs]",
        "name=domains",
    ],
}
"""Runs for the commands that take one: each command of a page is for runs of some kind."""
PLACES = {"outputs/multirun/2026-01-31_12-00-00-000000": "outputs/glyphs-protonet", "outputs/*half_cheetah_dir/*":
          "outputs/glyphs-maml", "outputs/glyphs-protonet/2026-01-31_12-00-00-000000_s0": "RUN",
          "task.root=photos": "task.root=photos/many", "task.root=PHOTOS": "task.root=photos/many",
          "task.root=FOLDER": "task.root=tables", "task=OTHER": "task=vision/omniglot"}  # fmt: skip
"""Names of examples in the manual, and what stands for them here."""


def kind_of(line: str) -> str:
    """The run that a command is for."""
    if "known.csv" in line:
        return "texts"
    if "--target" in line or "tabular/csv" in line:
        return "tables"
    if "--to optimizer" in line:
        return "optimizer"
    if "points.csv" in line:
        return "numbers"
    if "task.together" in line:
        return "curves"
    if "task.test=[omniglot]" in line:
        return "domains"
    return "acting" if "test_rollouts" in line else "glyphs"


def commands() -> Iterator[str]:
    for line in ALL:
        words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if words and words[0] in ("metarun", "./scripts/run") and not is_named_alone(words):
            yield shlex.join(["metarun", *words[1:]])


def is_named_alone(words: list[str]) -> bool:
    """Whether a sentence names a command without what it needs: a run, a path, ..."""
    if len(words) != 2 or words[1] not in COMMANDS:
        return False
    return len(re.sub(r"\[.*?\]+", "", COMMANDS[words[1]].words).split()) > 2


COMMANDS_OF_THE_MANUAL = [*dict.fromkeys(commands())]


def short(words: list[str], unless: tuple[str, ...] = ()) -> list[str]:
    """``words`` with the budget in place of their own; keys in ``unless`` keep their values."""
    given = {key: value for key, value in BUDGET.items() if key not in unless}
    if "task=tabular/csv" in words:  # all tables are tested on, none is for validation
        given["runner.validate_every"] = "0"
    if devices := [word.partition("=")[2] for word in words if word.startswith("runner.devices=")]:
        given["runner.meta_batch"] = devices[0]
    kept = [word for word in words if word.partition("=")[0] not in given]
    return [*kept, *(f"{key}={value}" for key, value in given.items()), "tracker.wandb=disabled"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with runs and with files of a user's own."""
    root = tmp_path_factory.mktemp("manual")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for words in RUNS.values():
            assert main(short(words)) == 0
        many = [(f"many/class{i}", 6 * i) for i in range(40)]
        for folder, shade in (("known/dark", 30), ("known/light", 220), ("new", 90), *many):
            for i in range(6 if folder.startswith("many") else 3):
                Path("photos", folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((28, 28), shade + i, np.uint8)).save(f"photos/{folder}/{i}.png")
        Path("points.csv").write_text("x,y\n-1,0.3\n0,0.9\n1,0.1\n")
        Path("wanted.csv").write_text("x\n0.5\n2\n")
        Path("known.csv").write_text(
            "label,text\nrefund,money back\nrefund,return it\nhours,when open\nhours,till when\n"
        )
        Path("new.csv").write_text("text\nI want my money\nwhen do you close\n")
        flowers = [f"{i % 5},{i % 7},{'ab'[i % 2]}" for i in range(20)]
        for file in ("tables/one.csv", "tables/two.csv", "tables/three.csv", "tables/four.csv", "flowers.csv"):
            Path(file).parent.mkdir(exist_ok=True)
            Path(file).write_text("\n".join(["length,width,species", *flowers]))
        Path("unseen.csv").write_text("length,width\n1,2\n3,4\n")
        (run,) = Path("outputs/glyphs-protonet").iterdir()
        assert main(["adapt", str(run), "--support", "photos/known", "--out", "adapted"]) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS_OF_THE_MANUAL)
def test_a_command_of_the_manual_runs(
    line: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for word, where in ELSEWHERE.items():
        if word in line:
            pytest.skip(f"run by {where}")
    monkeypatch.chdir(place)
    name = RUNS[kind_of(line)][-1].removeprefix("name=")
    run = str(max((place / "outputs" / name).iterdir()))
    words = [PLACES.get(word, word) for word in shlex.split(line)[1:]]
    words = [str(place / "adapted") if word == "ADAPTED" else word for word in words]
    if "--target" in words:
        here = {"my.csv": "flowers.csv", "new.csv": "unseen.csv", "COLUMN": "species"}
        words = [here.get(word, word) for word in words]
    words = [run if word == "RUN" else word.replace("=RUN", f"={run}") for word in words]
    command, rest = split(words) if words != ["--version"] else ("help", [])
    options = parse(COMMANDS[command], rest).options
    if command == "reproduce":
        words = ["reproduce", rest[0], "--smoke"]
    elif command == "collect":
        kept = [word for word in rest if not word.startswith(("runner.", "--tasks="))]
        words = ["collect", *kept, "algorithm.rollouts=2", "runner.iterations=1", "--tasks", "1"]
    elif command == "bench":
        words = ["bench", "workloads=W1", "rounds=1", "meta_batch=2", "memory=false"]
    elif command == "search" and rest:
        words = [*short(words), *([] if "--trials" in words else ["--trials", "2"])]
    elif command == "eval" or (command == "resume" and rest):
        more = ["runner.test_episodes=2"] if command == "eval" else []
        words = [*(word for word in words if not word.startswith("runner.test_episodes=")), *more]
        words = [word.replace("runner.iterations=1000", "runner.iterations=3") for word in words]
    elif command == "train" and not {"--cfg", "--help", "--info"} & {*options}:
        # A baseline that learns nothing is evaluated at once.
        words = short(words, ("runner.iterations",) if "runner.iterations=0" in words else ())
    elif command == "cache":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    status = main(words)
    said = capsys.readouterr()
    if status == 2 and (wanted := re.search(r"[^\n]*(pip install|METARUN_DATA|is not installed)[^\n]*", said.err)):
        pytest.skip(f"NOT RUN: {wanted[0]}")
    assert status == 0, said.err
    assert (said.out + said.err).strip()


def test_what_other_tests_run_is_in_the_manual() -> None:
    unused = [word for word in [*ELSEWHERE, *PLACES] if not any(word in line for line in COMMANDS_OF_THE_MANUAL)]
    assert unused == []
