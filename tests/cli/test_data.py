"""A result is about the data it says: what a run keeps of its data, and what resume and eval do where these differ."""

import json
import os
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from metarun.cli import main

SMALL = (
    *(
        "algorithm=protonet",
        "algorithm.train_query=1",
        "task.way=2",
        "task.shot=1",
        "task.query=1",
        "algorithm.train_way=2",
    ),
    *("runner.iterations=2", "runner.validate_every=0", "runner.test_episodes=4", "runner.checkpoint_seconds=0"),
    *("runner.plots=false", "tracker.wandb=disabled", "runner.eval_batch=4", "name=x"),
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path


def write(root, names, seed=0):
    for name in names:
        rng = np.random.default_rng([seed, ord(name)])
        (root / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(root / name / f"{i}.png")


def write_texts(path, names, changed=""):
    rows = [f"{name} says {i}{changed},{name}" for name in names for i in range(3)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")


def train(*words):
    assert main([*SMALL, *words]) == 0
    (run,) = os.popen("ls -d outputs/x/*").read().split()
    return os.path.abspath(run)


@pytest.fixture
def run(here):
    """A run on the folder imgs of classes a..j."""
    write(here / "a" / "imgs", "abcdefghij")
    return train("task=vision/folder", "model=mlp", "task.root=imgs", "task.size=8")


def stored(run):
    with open(os.path.join(run, "data.json")) as file:
        return json.load(file)


def evaluation(run):
    name = sorted(os.listdir(os.path.join(run, "evaluations")))[-1]
    with open(os.path.join(run, "evaluations", name)) as file:
        return json.load(file)


def test_a_run_keeps_its_classes_its_datas_fingerprint_and_absolute_paths(run, here):
    kept = stored(run)
    assert sorted(name for names in kept["classes"].values() for name in names) == list("abcdefghij")
    assert set(kept["content"]) == set("abcdefghij")
    assert kept["places"] == [str(here / "a" / "imgs")]
    assert kept["fingerprint"]
    with open(os.path.join(run, "config.yaml")) as file:
        assert yaml.safe_load(file)["task"]["root"] == str(here / "a" / "imgs")


def test_eval_elsewhere_reads_the_runs_own_data(run, here, monkeypatch, capsys):
    assert main(["eval", run]) == 0
    first = evaluation(run)["test"]
    write(here / "b" / "imgs", "abcdefghij", seed=1)  # other data under the same relative path
    monkeypatch.chdir(here / "b")
    assert main(["eval", run]) == 0
    assert evaluation(run)["test"] == first
    assert evaluation(run)["data"]["fingerprint"] == stored(run)["fingerprint"]
    capsys.readouterr()
    assert main(["eval", run, "task.root=imgs"]) == 0
    assert "evaluating on data that differ from the run's: the examples of 10 classes" in capsys.readouterr().err
    assert evaluation(run)["test"] != first


def test_a_moved_folder_is_recognised_by_its_content(run, here, capsys):
    assert main(["eval", run]) == 0
    first = evaluation(run)["test"]
    shutil.move(here / "a" / "imgs", here / "elsewhere")
    for command in ("eval", "resume"):
        assert main([command, run]) == 2
        told = capsys.readouterr().err.strip()
        assert "\n" not in told.split("metarun: ")[-1]
        assert f"metarun {command} {run} task.root=NEW" in told
    assert main(["eval", run, f"task.root={here / 'elsewhere'}"]) == 0
    assert evaluation(run)["test"] == first
    assert "other_data" not in evaluation(run)["data"]
    assert main(["resume", run, "runner.iterations=3", f"task.root={here / 'elsewhere'}"]) == 0


def test_changed_images_are_refused_unless_the_data_are_named(run, here, capsys):
    root = here / "a" / "imgs"
    Image.new("RGB", (8, 8)).save(root / "c" / "0.png")
    for command in (["eval", run], ["resume", run, "runner.iterations=3"]):
        assert main(command) == 2
        assert "the examples of 1 classes have changed ('c')" in capsys.readouterr().err
    assert main(["eval", run, f"task.root={root}"]) == 0
    assert "'c'" in evaluation(run)["data"]["other_data"]
    assert main(["resume", run, "runner.iterations=3", f"task.root={root}"]) == 2


def test_new_classes_change_nothing_unless_they_are_asked_for(run, here, capsys):
    assert main(["eval", run]) == 0
    first = evaluation(run)["test"]
    write(here / "a" / "imgs", "klmno")
    capsys.readouterr()
    assert main(["eval", run]) == 0
    assert "5 classes that the run does not know are ignored" in capsys.readouterr().err
    assert evaluation(run)["test"] == first
    assert main(["resume", run, "runner.iterations=3"]) == 0
    assert main(["eval", run, "--new-classes"]) == 0
    assert evaluation(run)["data"]["new_classes"] == list("klmno")
    shutil.rmtree(here / "a" / "imgs" / "d")
    capsys.readouterr()
    assert main(["eval", run]) == 2
    assert "lack 1 of the 10 classes that the run has: 'd'" in capsys.readouterr().err


def test_classes_that_were_trained_on_are_asked_for_by_name(run, capsys):
    assert main(["eval", run, "task.split_seed=1"]) == 2
    told = capsys.readouterr().err
    assert "classes of 'test' were meta-trained on: '" in told
    assert "--allow-seen-classes" in told
    assert main(["eval", run, "task.split_seed=1", "--allow-seen-classes"]) == 0
    assert "NOT HELD OUT" in capsys.readouterr().out
    seen = evaluation(run)["data"]["seen_classes"]
    assert set(seen) <= set(stored(run)["classes"]["train"])
    assert seen


def test_a_class_that_was_renamed_is_still_known(run, here, capsys):
    shutil.copytree(here / "a" / "imgs", here / "b" / "imgs")
    for name in "abcdefghij":
        (here / "b" / "imgs" / name).rename(here / "b" / "imgs" / f"other {name}")
    assert main(["eval", run, f"task.root={here / 'b' / 'imgs'}", "task.split_seed=1"]) == 2
    assert "were meta-trained on: 'other " in capsys.readouterr().err


def test_runs_from_before_the_record_go_on_with_a_line(run, capsys):
    os.unlink(os.path.join(run, "data.json"))
    capsys.readouterr()
    assert main(["eval", run]) == 0
    assert "the run has no data.json" in capsys.readouterr().err
    assert main(["resume", run, "runner.iterations=3"]) == 0


def test_a_damaged_record_is_named(run, capsys):
    for content in ("{", "[]", '{"classes": 1}', '{"classes": {"train": [1]}, "content": {}}'):
        with open(os.path.join(run, "data.json"), "w") as file:
            file.write(content)
        assert main(["eval", run]) == 2
        assert "data.json is damaged" in capsys.readouterr().err


def test_a_file_of_texts_that_was_rewritten_is_refused(here, capsys):
    write_texts(here / "a" / "my.csv", "abcdefghij")
    run = train("task=nlp/text", "task.file=my.csv", "model=ngram_bag")
    with open(os.path.join(run, "config.yaml")) as file:
        assert yaml.safe_load(file)["task"]["file"] == str(here / "a" / "my.csv")
    write_texts(here / "a" / "my.csv", "abcdefghij", changed=" now")
    for command in (["eval", run], ["resume", run, "runner.iterations=3"]):
        assert main(command) == 2
        assert "the examples of 10 classes have changed" in capsys.readouterr().err
    assert main(["eval", run, "task.file=my.csv"]) == 0


def test_a_sweep_takes_no_run_over_other_data_as_done(here, capsys):
    write(here / "a" / "imgs", "abcdefghij")
    words = ["-m", *SMALL, "task=vision/folder", "model=mlp", "task.root=imgs", "task.size=8", "seed=0,1"]
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().err.count("done before") == 2
    shutil.rmtree(here / "a" / "imgs")
    write(here / "a" / "imgs", "abcdefghij", seed=1)
    assert main(words) == 0
    assert "done before" not in capsys.readouterr().err
