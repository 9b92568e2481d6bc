"""One way from an image to a family's pixels: in training, and for a user's own images in ``metarun adapt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.build import construct
from metarun.tasks.inputs import Inputs
from metarun.tasks.vision.images import Preparation
from metarun.tasks.vision.omniglot import Part
from metarun.tasks.vision.published import class_list
from tests.composed import composed

PLAIN = {"root": ".", "way": 2, "shot": 1, "query": 1, "test_ways": [], "unknown": 0, "episodes": "balanced"}
FEW = {**PLAIN, "whole": False, "crop": 0, "flip": False, "jitter": 0.0}
FOLDER = {**PLAIN, "crop": 0, "flip": False, "jitter": 0.0, "augment": 0.0, "val": 0.34, "test": 0.34}


def red_blue_red(file: Path) -> Path:
    """300 by 100 pixels: red on both sides of a blue middle square."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[:, 100:200] = [0, 0, 255]
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize(
    ("family", "keys", "share"),
    [
        ("mini_imagenet", {**FEW, "resize": "squash", "size": 30}, 2 / 3),
        ("mini_imagenet", {**FEW, "resize": "crop", "size": 30}, 0),
        ("tiered_imagenet", {**FEW, "resize": "squash", "size": 20}, 2 / 3),
        ("cub", {**FEW, "resize": "squash", "size": 30}, 2 / 3),
        ("cub", {**FEW, "resize": "crop", "size": 30}, 0),
        ("cifar_fs", {**FEW, "size": 32}, 2 / 3),
        ("fc100", {**FEW, "size": 32}, 2 / 3),
        ("folder", {**FOLDER, "size": 30, "colour": "rgb"}, 0),
    ],
)
def test_a_users_picture_looks_as_it_would_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, keys: dict[str, Any], share: float
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    listed = {} if family == "folder" else class_list(family)
    some = [[name for name, (home, _) in listed.items() if home == split][:2] for split in ("train", "val", "test")]
    for name in (f"class{i}" for i in range(6)) if family == "folder" else (name for each in some for name in each):
        for i in range(2):
            file = red_blue_red(tmp_path / "data" / name / f"{name}{i}.png")
    section = composed(f"task=vision/{family}")["task"]
    task = construct({**section, **keys, "root": str(tmp_path / "data")}, seed=0)
    trained = task.batch("train", [0]).support.x[0, 0]
    assert torch.equal(torch.from_numpy(task.preparation(file)), trained)
    kept = Inputs.from_dict(Inputs.of(task).as_dict(), "inputs.json")
    assert torch.equal(kept.tensor([file], None)[0], trained)
    red = float((trained[0] > trained[2]).float().mean())
    assert red == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("resize", ["nearest", "antialias"])
@pytest.mark.parametrize("invert", [True, False])
def test_a_users_drawing_looks_as_omniglots(tmp_path: Path, resize: Any, invert: bool) -> None:
    drawing = np.full((105, 105), 255, np.uint8)
    drawing[20:80, 40:60] = 0
    Image.fromarray(drawing).convert("1").save(tmp_path / "drawing.png")
    part = object.__new__(Part)
    part.path, part.archive = tmp_path, None
    stored = part.image("drawing.png", 28, resize, 1)
    prepare = Preparation(1, 28, 28, resize, "light" if invert else "dark")
    assert np.array_equal(prepare(tmp_path / "drawing.png"), 255 - stored if invert else stored)
