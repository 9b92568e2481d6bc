"""How a learner reads its inputs: every kind that a user may hand it, and images prepared as in training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.tasks.episode import Spec
from metarun.tasks.inputs import Inputs
from metarun.tasks.vision.images import Preparation
from metarun.types import Ink, Resizing

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3)).astype(np.uint8)


class Letters:
    """Encodes a text as its length."""

    def encode(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(text)] for text in texts])


def images(channels: int = 3, resize: Resizing = "crop", ink: Ink | None = None) -> Inputs:
    preparation = Preparation(channels, 12, 10, resize, ink)
    return Inputs(Spec("classification", "image", (channels, 12, 10), 5), preparation)


def of_every_kind(folder: Path) -> dict[str, Any]:
    Image.fromarray(PIXELS).save(folder / "i.png")
    chw = PIXELS.transpose(2, 0, 1)
    return {
        "path": folder / "i.png",
        "string": str(folder / "i.png"),
        "Pillow": Image.fromarray(PIXELS),
        "array HWC": PIXELS,
        "array CHW": chw,
        "array of floats": PIXELS / 255,
        "array float32 CHW": (chw / 255).astype(np.float32),
        "tensor CHW": torch.from_numpy(chw.copy()),
        "tensor HWC": torch.from_numpy(PIXELS),
        "tensor of floats": torch.from_numpy(chw / 255).requires_grad_(),
        "opaque RGBA": np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]),
    }


def test_one_image_of_every_kind_and_a_batch_of_them(tmp_path: Path) -> None:
    inputs, kinds = images(), of_every_kind(tmp_path)
    expected = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())[None]
    for name, item in kinds.items():
        assert torch.equal(inputs.tensor(item, None), expected), name
    assert torch.equal(inputs.tensor(list(kinds.values()), None), expected.expand(len(kinds), -1, -1, -1))
    for batch in (np.stack([PIXELS] * 2), torch.from_numpy(np.stack([PIXELS.transpose(2, 0, 1)] * 2))):
        assert torch.equal(inputs.tensor(batch, None), expected.expand(2, -1, -1, -1))
    grey = images(1).tensor(PIXELS[..., 0], None)
    assert torch.equal(grey, torch.from_numpy(PIXELS[None, None, ..., 0].copy()))


@pytest.mark.parametrize(
    "item",
    [
        None, 3, b"bytes", {"a": 1}, [3], [None], np.zeros(4), np.zeros((2, 2, 2, 2, 2)), np.zeros((5, 5, 7)),
        np.array(["a", "b"], dtype=object)[:0].reshape(0, 1), np.zeros((4, 4), complex), torch.zeros(3),
    ],
)  # fmt: skip
def test_no_images(item: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        images().tensor(item, None)


def test_texts() -> None:
    inputs = Inputs(Spec("classification", "text", (), 5))
    assert inputs.tensor("one text", Letters()).tolist() == [[8]]
    assert inputs.tensor(np.array(["a", "bc"]), Letters()).tolist() == [[1], [2]]
    assert inputs.tensor((word for word in ("a", "bc")), Letters()).tolist() == [[1], [2]]
    for wrong in (b"abc", 3, None, ["a", 3], {"a": "b"}):
        with pytest.raises(TypeError):
            inputs.tensor(wrong, Letters())


def test_numbers() -> None:
    one, three = (Inputs(Spec("regression", "vector", (n,), 1)) for n in (1, 3))
    for items in ([[1], [2]], [1.0, 2.0], np.array([1, 2]), torch.tensor([[1.0], [2.0]])):
        assert one.tensor(items, None).tolist() == [[1.0], [2.0]]
    assert one.tensor(1, None).tolist() == [[1.0]]
    assert three.tensor([1, 2, 3], None).tolist() == [[1.0, 2.0, 3.0]]
    assert three.tensor(torch.arange(6).view(2, 3), None).shape == (2, 3)
    for wrong in ("1", ["1"], [[1, 2]], [1, 2], None, [[1, 2, 3], [4]], {"x": 1}):
        with pytest.raises(TypeError):
            three.tensor(wrong, None)


@pytest.mark.parametrize(
    ("ink", "paper", "seen"), [("light", 255, 0), ("light", 0, 0), ("dark", 0, 255), (None, 255, 255)]
)
def test_drawings_are_turned_to_the_familys_ink(ink: Ink | None, paper: int, seen: int) -> None:
    drawing = np.full((12, 10), paper, np.uint8)
    drawing[3:5] = 255 - paper
    assert images(1, ink=ink).tensor(drawing, None)[0, 0, 0, 0] == seen


def test_what_is_kept_comes_back() -> None:
    for inputs in (images(1, "nearest", "dark"), Inputs(Spec("regression", "vector", (3,), 2, peak=1.0))):
        assert Inputs.from_dict(inputs.as_dict(), "there") == inputs
