"""Omniglot on the real files: counts, disjoint splits, rotations, preprocessing; and broken files refused."""

import functools
import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.build import build as build_run
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.tasks.episode import EpisodeShape
from metarun.tasks.vision import omniglot
from metarun.tasks.vision.omniglot import Omniglot, Part
from tests.composed import composed
from tests.slow import slow_but

ARGUMENTS = {
    **{
        "root": None,
        "way": 5,
        "shot": 1,
        "query": 5,
        "test_ways": [20],
        "unknown": 0,
        "episodes": "balanced",
        "split": "vinyals",
        "split_seed": 0,
    },
    **{"val_classes": 100, "train_on_val": False, "rotations": "task", "rotation_splits": []},
    **{"size": 28, "resize": "nearest", "invert": True, "augment": 0.0},
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One cache for the module, which processes that share the tests share too: the drawings are decoded once.

    The archives are listed once.
    """
    root = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "omniglot"))
        patch.setattr(omniglot, "Part", functools.cache(Part))
        yield


def build(**given) -> Omniglot:
    return Omniglot(0, **{**ARGUMENTS, **given})


def counts(task):
    return {split: len(ids) for split, ids in task.classes.items()}


def names(task, split):
    return {task.data.names[c] for c in task.classes[split]}


def drawn_by_number(monkeypatch) -> None:
    """In place of the drawings: images whose pixels are the number of the character, in two bytes, and of the turn."""

    def load(parts, size, resize, turns):
        images = np.zeros((turns, 1623, 20, 1, 2, 2), dtype=np.uint8)
        character = np.arange(1623)[:, None]
        images[..., 0, 0, 0], images[..., 0, 0, 1] = character // 256, character % 256
        images[..., 0, 1, 0] = np.arange(turns)[:, None, None]
        return images.reshape(-1, 1, 2, 2)

    class Part:
        def __init__(self, root, part):
            first, count = (0, 964) if part == "images_background" else (964, 659)
            self.path = Path(part)
            self.characters = {f"A{i // 40}/character{i % 40 + 1:02d}": [] for i in range(first, first + count)}
            self.digests = [str(i) for i in range(first, first + count)]

    monkeypatch.setattr(omniglot, "load", load)
    monkeypatch.setattr(omniglot, "Part", Part)


def test_a_turn_is_the_tasks_own_and_makes_no_new_class(monkeypatch):
    drawn_by_number(monkeypatch)
    where = ["train", "val"]
    task = build(split="random", rotations="task", rotation_splits=where, invert=False, size=2, test_ways=[])
    turns = Counter()
    for split in ("train", "test"):
        batch = task.batch(split, range(100), EpisodeShape(5, 1, 2, named=True))
        x = torch.cat([batch.support.x.view(100, 5, 1, 4), batch.query.x.view(100, 5, 2, 4)], 2)
        assert (x == x[:, :, :1]).all()  # one character and one turn for all examples of a class in a task
        character, turn = 256 * x[:, :, 0, 0].long() + x[:, :, 0, 1], x[:, :, 0, 2]
        assert torch.equal(batch.support.y, torch.from_numpy(task.numbers(split, character.numpy())))
        assert batch.support.way == len(task.classes[split])
        if split == "test":
            assert (turn == 0).all()
        else:
            turns.update(turn.flatten().tolist())
            assert len(turn[0].unique()) > 1 or len(turn[1].unique()) > 1  # a turn for each class of the task
    assert sorted(turns) == [0, 1, 2, 3]
    assert all(80 < count < 170 for count in turns.values())  # of 500


SPLITS = [
    ("vinyals", "none", None, (1028, 172, 423)),
    ("vinyals", "classes", None, (4112, 688, 1692)),
    ("random", "none", None, (1100, 100, 423)),
    ("random", "classes", ["train"], (4400, 100, 423)),
    ("random", "task", None, (1100, 100, 423)),
]


@pytest.mark.data
@pytest.mark.parametrize(("split", "rotations", "where", "expected"), slow_but(SPLITS[1:2] + SPLITS[3:], SPLITS))
def test_split_counts_and_disjointness(data_root, split, rotations, where, expected):
    task = build(split=split, rotations=rotations, rotation_splits=where or ["train", "val", "test"])
    assert tuple(counts(task).values()) == expected
    characters = [{name.split("/rot")[0] for name in names(task, part)} for part in ("train", "val", "test")]
    assert sum(map(len, characters)) == len(set.union(*characters)) == 1623
    assert task.data.x.shape == ((1 if rotations == "none" else 4) * 32460, 1, 28, 28)
    assert set(task.data.sizes) == {20}


@pytest.mark.data
def test_the_vinyals_split_is_the_published_one(data_root):
    task = build(rotations="classes", rotation_splits=["train", "val", "test"])
    for split in ("train", "val", "test"):
        published = (data_root / "splits" / "omniglot_vinyals" / f"{split}.txt").read_text().split()
        assert names(task, split) == set(published)


@pytest.mark.data
def test_the_lake_split_validates_on_whole_background_alphabets(data_root):
    task = build(split="lake")
    assert len(names(task, "test")) == 659
    alphabets = [{name.split("/")[0] for name in names(task, part)} for part in ("train", "val", "test")]
    assert sum(map(len, alphabets)) == len(set.union(*alphabets)) == 50
    assert len(alphabets[2]) == 20
    assert 100 <= len(names(task, "val")) < 100 + 55
    assert len(names(task, "train")) + len(names(task, "val")) == 964
    assert names(build(split="lake", split_seed=1), "val") != names(task, "val")


@pytest.mark.data
def test_the_random_split_follows_its_seed_and_size(data_root):
    a, b = build(split="random", val_classes=50), build(split="random", split_seed=1, val_classes=50)
    assert counts(a) == {"train": 1150, "val": 50, "test": 423}
    assert 60 < len(names(a, "test") & names(b, "test")) < 160  # 110 expected
    assert names(a, "test") == names(build(split="random"), "test")


@pytest.mark.data
def test_validation_characters_can_be_trained_on_but_not_chosen_by(data_root, tmp_path):
    words = ["task=vision/omniglot", "task.train_on_val=true", f"runner.directory={tmp_path}"]
    with pytest.raises(UserError, match=r"runner\.select=best"):
        build_run(compose(words).config)
    task = build_run(composed(*words, "runner.select=last")).task
    assert counts(task) == {"train": 4 * 1200, "val": 4 * 172, "test": 4 * 423}
    assert task.protocol()["train_on_val"]


@pytest.mark.data
def test_rotations_are_quarter_turns_of_the_same_drawings(data_root):
    task = build(rotations="classes", test_ways=[])
    x = task.data.x.view(4, 32460, 28, 28)[:, ::500]
    for turn in range(4):
        # Picking pixels commutes with turning: the 28-pixel image itself is turned.
        assert torch.equal(x[turn], torch.rot90(x[0], turn, (1, 2)))
    name = task.data.names[1623 * 3 + 7]
    assert name == f"{task.data.names[7].split('/rot')[0]}/rot270"


@pytest.mark.data
def test_preprocessing(data_root):
    nearest = build()
    x, inverted = (task.data.x[::50] for task in (nearest, build(invert=False)))
    assert x.unique().tolist() == [0, 255]
    assert x.float().mean() < 40  # ink is bright, and rare
    assert torch.equal(inverted, 255 - x)
    part = Part(None, "images_background")
    file = next(iter(part.characters.values()))[0]
    assert nearest.data.names[0].split("/rot")[0] in file
    with zipfile.ZipFile(part.path) as archive, Image.open(io.BytesIO(archive.read(file))) as drawing:
        assert drawing.mode == "1"
        # On these 1-bit images Pillow picks pixels whatever it is asked for: what official codes got.
        lanczos = np.asarray(drawing.resize((28, 28), Image.Resampling.LANCZOS))
    assert np.array_equal(nearest.data.x[0, 0] == 0, lanczos)
    grey = part.image(file, 28, "antialias", 4)
    assert len(np.unique(grey[0])) > 10
    assert abs((255 - grey[0]).mean() / nearest.data.x[0].float().mean() - 1) < 0.3
    assert all(abs(grey[i].astype(int) - np.rot90(grey[0], i)).max() <= 2 for i in range(4))


@pytest.mark.data
def test_a_turn_is_drawn_for_each_class_of_each_task(data_root):
    task = build(split="random", rotations="task", rotation_splits=["train", "test"])
    for split in ("train", "test"):
        drawn = task.rows(split, range(200), task.shape)[0]
        turns = drawn // 1623
        assert min(Counter(turns.flatten().tolist()).values()) > 200
        assert np.isin(drawn % 1623, task.classes[split]).all()
        assert all(len(set(row)) == 5 for row in (drawn % 1623).tolist())
        assert (task.rows(split, [7], task.shape)[0] == drawn[7]).all()
    assert (task.rows("val", range(50), task.shape)[0] < 1623).all()


@pytest.mark.data
def test_an_episode_is_the_same_in_any_batch(data_root):
    task, shape = build(rotations="classes"), EpisodeShape(60, 1, 5)
    together = task.batch("train", [3, 4], shape)
    assert together.query.x.shape == (2, 300, 1, 28, 28)
    for i in (3, 4):
        assert torch.equal(together.support.x[i - 3], task.batch("train", [i], shape).support.x[0])
        assert torch.equal(together.query.x[i - 3], task.batch("train", [i], shape).query.x[0])


@pytest.mark.data
@pytest.mark.slow
def test_zips_folders_and_roots_give_the_same(data_root, tmp_path):
    part, own = "images_evaluation", tmp_path / "own"
    with zipfile.ZipFile(data_root / "omniglot" / f"{part}.zip") as archive:
        archive.extractall(own)
    (own / part / ".DS_Store").touch()
    folder, zipped, direct = (Part(str(r), part) for r in (own, data_root, data_root / "omniglot"))
    assert zipped.digests == direct.digests == folder.digests
    assert list(folder.characters) == list(zipped.characters)
    for name in list(zipped.characters)[::50]:
        pairs = zip(folder.characters[name], zipped.characters[name], strict=True)
        assert all(
            np.array_equal(folder.image(f, 28, "nearest", 1), zipped.image(z, 28, "nearest", 1)) for f, z in pairs
        )
    drawing = own / part / folder.characters["Keble/character01"][0]
    drawing.write_bytes(drawing.read_bytes() + b" ")
    changed = [name for name, a, b in zip(folder.characters, folder.digests, Part(str(own), part).digests, strict=True)
               if a != b]  # fmt: skip
    assert changed == ["Keble/character01"]
    drawing.unlink()
    with pytest.raises(UserError, match="has 658 characters with 20 drawings"):
        Part(str(own), part)


def test_a_split_that_leaves_nothing_is_refused():
    alphabets = [f"A{i}/character{j:02}" for i in range(50) for j in range(1, 34)][:1623]
    with pytest.raises(UserError, match=r"task\.val_classes=1200"):
        omniglot.split_characters(alphabets, "random", 0, 1200)
    with pytest.raises(UserError, match=r"task\.val_classes=964"):
        omniglot.split_characters(alphabets, "lake", 0, 964)


def small_zip(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def drawings(part: str, characters: int, content: bytes) -> dict[str, bytes]:
    return {
        f"{part}/Alphabet{c // 20}/character{c % 20 + 1:02}/{c:04}_{d:02}.png": content
        for c in range(characters)
        for d in range(1, 21)
    }


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (105, 105), 1).save(buffer, "png")
    return buffer.getvalue()


BROKEN = ("junk", "truncated", "few", "none", "no folder", "bad image")


@pytest.mark.parametrize("case", slow_but(BROKEN[:-1], BROKEN))
def test_broken_files_are_one_line(tmp_path, case):
    root = tmp_path / "own"
    if case != "no folder":
        root.mkdir()
    background, evaluation = root / "images_background.zip", root / "omniglot" / "images_evaluation.zip"
    words = {
        "junk": "images_background.zip: not a readable zip file",
        "truncated": "images_background.zip: not a readable zip file",
        "few": "images_background.zip: has 3 characters with 20 drawings",
        "none": "has none of omniglot/images_background.zip",
        "no folder": "no such folder",
        "bad image": "Alphabet0/character05/0004_07.png: not a readable image",
    }
    if case == "junk":
        background.write_bytes(b"junk")
    if case in ("truncated", "few"):
        small_zip(background, drawings("images_background", 3, png()))
    if case == "truncated":
        background.write_bytes(background.read_bytes()[:-3000])
    if case == "bad image":
        files = drawings("images_background", 964, png())
        files["images_background/Alphabet0/character05/0004_07.png"] = b"no image"
        small_zip(background, files)
        small_zip(evaluation, drawings("images_evaluation", 659, png()))
    with pytest.raises(UserError, match=r"^[^\n]*$") as error:
        build(root=str(root), split="random").data.x.sum()
    assert words[case] in str(error.value)


@pytest.mark.data
def test_only_meta_training_images_are_warped(data_root):
    plain, warped = build(), build(augment=0.2)
    changed = {split: warped.batch(split, [3]) for split in ("train", "val", "test")}
    assert not torch.equal(changed["train"].support.x, plain.batch("train", [3]).support.x)
    assert torch.equal(changed["train"].query.x, warped.batch("train", [3]).query.x)
    for split in ("val", "test"):
        assert torch.equal(changed[split].support.x, plain.batch(split, [3]).support.x)
    assert "augment" not in plain.protocol()
    assert warped.protocol()["augment"] == 0.2
