"""Models of timm: real ones where timm imports, and what is said where it does not."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metarun.config.build import construct
from metarun.errors import Interrupted, RunFailed, UserError
from metarun.models import pretrained
from metarun.models.pretrained import select_trained
from metarun.models.timm import Timm, import_timm
from metarun.models.weights import load_by_name, load_in_order, read_weights
from metarun.tasks.class_data import ClassData
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.tasks.vision.base import ImageFewShot
from metarun.training.signals import StopRequest
from tests.composed import composed

SPEC = Spec("classification", "image", (3, 32, 32), 3)


def build(spec: Spec = SPEC, **given: Any) -> Timm:
    return Timm(spec, **{"name": "resnet10t", "pretrained": False, "weights": None, "resize": None, **given})


@pytest.fixture
def real() -> Any:
    """timm itself; skipped, with the reason, where it does not import."""
    try:
        return import_timm()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What timm was asked for, in place of timm: a model that returns its inputs."""
    asked: dict[str, Any] = {}

    def create_model(name: str, **given: Any) -> nn.Module:
        asked.update(given, name=name)
        if name == "vit" and given["img_size"] == (7, 7):
            raise AssertionError("sizes do not\ndivide")
        if given["pretrained"]:
            raise ConnectionError("no network")
        net = nn.Flatten()
        net.pretrained_cfg = {  # type: ignore[assignment]
            "mean": (0.5, 0.25, 0.75), "std": (0.5, 0.5, 0.25), "classifier": "head",
        }  # fmt: skip
        return net

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(
        create_model=create_model, is_model=lambda name: name in ("vit", "resnet18"),
        list_models=lambda: ["vit", "resnet18"],
        models=SimpleNamespace(get_pretrained_cfg=lambda name: SimpleNamespace(fixed_input_size=name == "vit")),
    ))  # type: ignore[arg-type] # fmt: skip
    return asked


def test_inputs_are_standardised_and_resized(stand_in: dict[str, Any]) -> None:
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([0.5, 0.25, 0.75]).view(3, 1, 1), torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1)
    assert torch.allclose(build(name="resnet18")(x), ((x / 255 - mean) / std).flatten(1), atol=1e-6)
    assert "img_size" not in stand_in
    assert build(name="vit.augreg", resize=16)(x).shape == (2, 3 * 16 * 16)
    assert build(name="vit")(x).shape == (2, 3 * 32 * 32)
    assert stand_in["img_size"] == (32, 32)
    grey = Spec("classification", "image", (1, 28, 28), 3)
    assert torch.allclose(build(grey, name="resnet18")(torch.full((1, 1, 28, 28), 0.5)), torch.zeros(1, 784))
    assert stand_in["in_chans"] == 1


def test_a_frozen_encoder_embeds_each_image_once(
    stand_in: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    task = ImageFewShot(ClassData(torch.randint(0, 256, (36, 3, 4, 4), dtype=torch.uint8), np.arange(0, 37, 6),
                                  list("abcdef")), {"train": [0, 1], "val": [2, 3], "test": [4, 5]}, seed=0, way=2,
                        shot=1, query=2)  # fmt: skip
    images = task.batch("test", [0, 1])
    model = build(task.spec, name="resnet18", tune="frozen")
    task.prepare(model)
    ran: list[int] = []
    features = Timm._features
    monkeypatch.setattr(Timm, "_features", lambda self, net, x: ran.append(len(x)) or features(self, net, x))
    embedded = task.batch("test", [0, 1])
    assert ran == [12]  # those of the split alone
    trained = build(task.spec, name="resnet18")
    for before, after in ((images.support, embedded.support), (images.query, embedded.query)):
        assert torch.allclose(trained(before.x.flatten(0, 1)), model(after.x.flatten(0, 1)), atol=1e-6)
        assert torch.equal(before.y, after.y)
    task.prepare(build(task.spec, name="resnet18", tune="frozen"))
    ran.clear()
    assert torch.equal(task.batch("test", [0, 1]).query.x, embedded.query.x)
    assert not ran  # another run reads the cache
    task.prepare(build(task.spec, name="resnet18", tune="frozen", mean=[0.1, 0.1, 0.1]))
    assert not torch.equal(
        task.batch("test", [0, 1]).query.x, embedded.query.x
    )  # other preprocessing, other embeddings
    assert not model.state_dict()
    assert not list(model.parameters())


def test_embedding_stops_on_request_and_continues_after_its_blocks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretrained, "BLOCK", 4)
    rows: list[int] = []

    def embed(batch: torch.Tensor) -> torch.Tensor:
        rows.extend(batch.tolist())
        if stop is not None and len(rows) == 6:
            signal.raise_signal(signal.SIGTERM)
        return batch[:, None].float()

    def embeddings() -> torch.Tensor:
        return pretrained.embed_once("net", "images", (11, 1), {"a": 1}, lambda: (torch.arange(11).flip(0), embed))

    with StopRequest() as stop, pytest.raises(Interrupted):
        embeddings()
    assert rows == [10, 9, 8, 7, 6, 5]
    rows.clear()
    stop = None
    assert torch.equal(embeddings(), torch.arange(11.0)[:, None])
    assert rows == [6, 5, 4, 3, 2, 1, 0]  # the first block was kept
    embeddings()
    assert len(rows) == 7


def test_protocols_tell_the_encoder_and_no_augmentation_of_a_frozen_one(stand_in: dict[str, Any]) -> None:
    task = ImageFewShot(ClassData(torch.zeros(12, 3, 4, 4, dtype=torch.uint8), np.arange(0, 13, 2), list("abcdef")),
                        {"train": [0, 1], "val": [2, 3], "test": [4, 5]}, seed=0, way=2, shot=1, query=1)  # fmt: skip
    task.augment, task.flip = 0.1, True
    model = build(task.spec, name="resnet18", tune="frozen", pretrained_on="ImageNet")
    assert task.augmentation("augment", "flip") == {"augment": 0.1, "flip": True}
    task.prepare(model)
    assert task.augmentation("augment", "flip") == {"augment": 0.0, "flip": False}
    assert model.protocol() == {"encoder": "resnet18", "weights": "random", "tune": "frozen"}
    model.weights = "w.pth"
    assert model.protocol() == {
        "encoder": "resnet18", "weights": "w.pth", "tune": "frozen", "pretrained_on": "ImageNet"
    }  # fmt: skip
    model.pretrained_on = None
    assert "overlap" in model.protocol()["pretrained_on"]


def test_the_card_beside_the_weights_determines_the_preprocessing(stand_in: dict[str, Any], tmp_path: Path) -> None:
    save_file({"head.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    card = {"mean": [0.1, 0.2, 0.3], "std": [1, 0.5, 0.25], "input_size": [3, 16, 8], "interpolation": "bilinear"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": card}))
    model = build(name="resnet18", weights=str(tmp_path), resize="card", interpolation=None)
    assert model.mean.flatten().tolist() == pytest.approx(card["mean"])
    assert model.std.flatten().tolist() == card["std"]
    assert (model.size, model.interpolation) == ((16, 8), "bilinear")
    own = build(name="resnet18", weights=str(tmp_path), mean=[0.0, 0.0, 0.0])  # a key has the last word
    assert not own.mean.any()
    with pytest.raises(UserError, match=r"its card is of resnet18, not of model.name=vit$"):
        build(name="vit", weights=str(tmp_path))
    for text, words in (
        ("{", "is no card"), ('{"mean": [0]}', "no mean and std"), ("[]", "is no card"),
        (json.dumps({**card, "std": [0, 1, 1]}), "above 0"), (json.dumps({**card, "input_size": 224}), "is no card"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=rf"^model.weights=[^\n]*{words}[^\n]*$"):
            build(name="resnet18", weights=str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"the folder has none of model.safetensors"):
        build(name="resnet18", weights=str(tmp_path))


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        ({"name": "resnet81"}, UserError, "timm has no such model - did you mean 'resnet18'?"),
        ({"name": "resnet18", "weights": "no/such"}, UserError, "model.weights=no/such: no such file"),
        ({"name": "resnet18", "weights": "x", "pretrained": True}, UserError, "give only one of them"),
        ({"name": "resnet18", "pretrained": True}, RunFailed, "its weights could not be downloaded (no network)"),
        ({"name": "resnet18", "in_order": True}, UserError, "give the file as model.weights"),
        ({"name": "resnet18", "weights": "no_such_package:x"}, UserError, "'no_such_package' is not installed"),
        ({"name": "vit", "resize": 7}, UserError, "3 channels and 7x7 pixels (sizes do not divide)"),
    ],
)
def test_what_cannot_be_is_one_line(
    stand_in: dict[str, Any], given: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=r"^[^\n]*$") as error:
        build(**given)
    assert words in str(error.value)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model=timm"):
        build()


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_real_models_embed_learn_and_follow_the_policy(real: Any, name: str) -> None:
    model = build(name=name)
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    features = model(x)
    assert features.dim() == 2
    assert features.isfinite().all()
    section = composed("task=vision/folder", "algorithm=protonet")["algorithm"] | {"norm": "transductive"}
    learner = construct(section, model=model, spec=SPEC)
    y = torch.arange(3).repeat_interleave(2).expand(2, -1)
    data = TaskBatch(*(Labelled(torch.rand(2, 6, 3, 32, 32), y, 3) for _ in range(2)))
    before = [p.clone() for p in learner.parameters()]
    learner.meta_step(data, 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.parameters(), strict=True))
    assert learner.evaluate(data)["accuracy"].shape[0] == 2


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_real_weights_come_from_a_file_without_its_classifier(real: Any, name: str, tmp_path: Any) -> None:
    first = build()
    stored = {**first.net.state_dict(), "fc.weight": torch.zeros(9, 512), "fc.bias": torch.zeros(9)}
    (save_file if name.endswith("safetensors") else torch.save)(stored, tmp_path / name)
    second = build(weights=str(tmp_path / name))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(first.eval()(x), second.eval()(x))
    with pytest.raises(UserError, match=r"^model.weights=[^\n]* weights of another network$"):
        build(name="resnet18", weights=str(tmp_path / name))


def norm_net(inputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.bin"])
def test_weights_of_any_format_are_assigned_by_name(name: str, tmp_path: Path) -> None:
    net, other, file, where = norm_net(), norm_net(), tmp_path / name, f"model.weights={name}"

    def stored(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (save_file if name.endswith("safetensors") else torch.save)(tensors, file)
        return read_weights(file, where)

    theirs = other.state_dict()
    load_by_name(net, stored({**theirs, "fc.weight": torch.zeros(5, 2)}), where, ("fc",))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), theirs.values(), strict=True))
    # Names as wrappers for several devices write them, and batch norm that has not counted.
    copies = {f"module.{key}": value for key, value in theirs.items() if "num" not in key}
    load_by_name(norm_net(), stored(copies), where)
    for tensors, said in (
        ({**theirs, "fc.weight": torch.zeros(5, 2)}, "has the tensor fc.weight, which the network lacks"),
        ({"0.weight": theirs["0.weight"]}, "has no tensor 0.bias and 4 more, which the network needs"),
        (
            {**theirs, "0.weight": torch.zeros(2, 4)},
            r"tensor 0.weight is \[2, 4\], and 0.weight of the network \[2, 3\]",
        ),
    ):
        with pytest.raises(UserError, match=rf"^model.weights={name}: [^\n]*{said}[^\n]*$"):
            load_by_name(net, stored(tensors), where)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match=rf"^model.weights={name}: cannot be read as weights [^\n]*$"):
        read_weights(file, where)


def test_files_of_training_scripts_are_unwrapped(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1)}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth", "w") == {"a": torch.ones(1)}
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"cannot be read as weights \(no file of tensors by name\)"):
        read_weights(tmp_path / "w.pth", "w")


def test_weights_of_other_names_are_assigned_in_order() -> None:
    net, other, where = norm_net(), norm_net(), "model.weights=w"
    theirs = {f"other{i}": value for i, value in enumerate(other.state_dict().values())}
    stored = {**theirs, "classifier": torch.zeros(5, 2)}
    load_in_order(net, stored, where)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), theirs.values(), strict=True))
    with pytest.raises(UserError, match=r"^model.weights=w: tensor other0 is \[2, 3\], and 0.weight of the network \["):
        load_in_order(norm_net(4), stored, where)
    with pytest.raises(UserError, match=r"^model.weights=w: has 8 tensors, and the network 2 [^\n]*$"):
        load_in_order(nn.Linear(3, 2), stored, where)


@pytest.mark.parametrize(
    ("tune", "left"), [("norm", {"1.weight", "1.bias"}), ("lora", {"0.down.weight", "0.up.weight"})]
)
def test_trained_weights(tune: Any, left: set[str]) -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).eval()
    x = torch.rand(4, 3)
    before = net(x)
    select_trained(net, tune, 1)
    assert {name for name, _ in net.named_parameters()} == left
    assert torch.equal(net(x), before)
