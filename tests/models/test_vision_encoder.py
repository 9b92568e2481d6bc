"""Vision models of transformers from a folder: preprocessing by their card, pooling, tuning, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.errors import UserError
from metarun.models.cards import processor_card
from metarun.models.vision_encoder import VisionEncoder
from metarun.tasks.episode import Spec
from tests.export.learners import options
from tests.models.tiny_bert import tiny_bert
from tests.models.tiny_vit import CARD, tiny_vit

SPEC = Spec("classification", "image", (3, 16, 16), 3)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vit(tmp_path_factory.mktemp("vit"))


def build(folder: Path, spec: Spec = SPEC, **given: Any) -> VisionEncoder:
    section = options(model={"option": "vision_encoder", "name": str(folder), **given})["model"]
    return VisionEncoder(spec, **{key: value for key, value in section.items() if key != "_target_"})


def test_features_are_those_of_transformers(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import ViTImageProcessorPil, ViTModel

    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theirs = ViTModel.from_pretrained(vit, add_pooling_layer=False).eval()
    pixels = ViTImageProcessorPil.from_pretrained(vit)(list(images.numpy()), return_tensors="pt")
    with torch.no_grad():
        states = theirs(**pixels).last_hidden_state
    for pooling, expected in (("cls", states[:, 0]), ("mean", states.mean(1))):
        frozen = build(vit, pooling=pooling)
        torch.testing.assert_close(frozen(frozen.encode(images)), expected, rtol=1e-4, atol=1e-5)
        assert frozen.width == 8
        assert not list(frozen.parameters())
    trained = build(vit, tune="all").eval()
    torch.testing.assert_close(trained(images), states[:, 0], rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in trained.parameters())
    torch.testing.assert_close(trained(images / 255), trained(images))
    updated = build(vit, tune="lora").eval()
    assert {name.split(".")[-2] for name, _ in updated.named_parameters()} == {"up", "down"}
    torch.testing.assert_close(updated(images), states[:, 0], rtol=1e-4, atol=1e-5)
    assert build(vit).protocol() == {"encoder": str(vit), "tune": "frozen",
                                     "pretrained_on": "not stated (may overlap the test classes)"}  # fmt: skip


def test_images_of_other_sizes_and_grey_ones_are_converted(vit: Path) -> None:
    grey = Spec("classification", "image", (1, 28, 28), 3)
    model = build(vit, grey, tune="all").eval()
    images = torch.rand(2, 1, 28, 28)
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    expected = build(vit, tune="all").eval()(small.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(images), expected)


def test_a_convolutional_network_has_places_in_place_of_tokens(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")).save_pretrained(
        tmp_path
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CARD))
    images = torch.rand(2, 3, 16, 16)
    mean, own = (build(tmp_path, pooling=pooling, tune="all").eval()(images) for pooling in ("mean", "own"))
    torch.testing.assert_close(mean, own)
    with pytest.raises(UserError, match=r"model.pooling=cls: model.name=.* has no tokens; allowed: mean, own"):
        build(tmp_path)


def test_the_card_in_its_forms(tmp_path: Path) -> None:
    def card(**values: Any) -> Any:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**CARD, **values}))
        return processor_card(tmp_path, "model.name=x")

    assert card().mean == tuple(CARD["image_mean"])
    assert (card().size, card().interpolation) == ((16, 16), "bilinear")
    assert card(do_center_crop=True, crop_size=12, resample=3).size == (12, 12)
    assert card(size={"shortest_edge": 20}, resample=3).size == (20, 20)
    assert card(size=24).size == (24, 24)
    assert (card(do_normalize=False).mean, card(do_normalize=False).std) == ((0, 0, 0), (1, 1, 1))
    # Pixels 0..255 in place of 0..1: (255 x - mean) / std.
    assert card(do_rescale=False).std == pytest.approx([each / 255 for each in CARD["image_std"]])
    assert card(rescale_factor=1 / 127.5).mean == pytest.approx([each / 2 for each in CARD["image_mean"]])


def test_what_cannot_be_is_one_line(vit: Path, tmp_path: Path) -> None:
    bare = tiny_vit(tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    damaged = tiny_vit(tmp_path / "damaged")
    content = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(content[: len(content) // 2])
    bert = tiny_bert(tmp_path / "bert")
    (bert / "preprocessor_config.json").write_text(json.dumps(CARD))
    for folder, given, said in (
        (vit, {"pooling": "own"}, r"model.pooling=own: .* has no pooled output; allowed: cls, mean"),
        (vit, {"resize": 24}, r"cannot read images of 24x24 pixels \(.*change model.resize"),
        (bare, {}, "has no preprocessor_config.json, which says how images are prepared"),
        (damaged, {}, r"damaged cannot be read as a model of transformers \("),
        (bert, {}, r"reads no images; for texts: model=encoder"),
        (tiny_vit(tmp_path / "a", image_std=[0, 1, 1]), {}, r"is no card of an image model \(std is .* above 0\)"),
        (tiny_vit(tmp_path / "b", size="large"), {}, "is no card of an image model"),
        (tmp_path / "nowhere", {}, "must be a folder with a config.json"),
    ):
        with pytest.raises(UserError, match=said) as error:
            build(folder, **given)
        assert "\n" not in str(error.value)
