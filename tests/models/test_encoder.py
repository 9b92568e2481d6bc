"""Pretrained encoders: pooling, padding, the cache of embeddings, low-rank additions, and what cannot be read."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metarun.algorithms.gradient.adapts import ParameterSubset
from metarun.algorithms.gradient.learner import GradientLearner
from metarun.algorithms.gradient.losses import TaskLoss
from metarun.algorithms.gradient.outer import Unrolled
from metarun.algorithms.gradient.rules import SGD
from metarun.algorithms.metric.learner import EmbeddingLearner
from metarun.config.build import construct
from metarun.errors import UserError
from metarun.models import encoder, pretrained
from metarun.models.encoder import Encoder
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from tests.composed import composed
from tests.models.tiny_bert import tiny_bert
from tests.slow import slow_but

TEXTS = ["book a flight to rome", "weather", "is my card blocked about my flight to rome", "block my card", "", "zzz a"]
VALUES: dict[str, Any] = {
    "pooling": "mean", "normalize": False, "tune": "all", "rank": 2, "max_tokens": 16, "scale": 1.0, "metric": False,
    "dropout": 0.0,
}  # fmt: skip
SPEC = Spec("classification", "text", (), 2)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def made(bert: Path, **changed: Any) -> Encoder:
    torch.manual_seed(0)
    return Encoder(name=str(bert), **{**VALUES, **changed}).eval()


def by_hand(bert: Path, text: str, pooling: str) -> Tensor:
    """One text alone, without padding or mask, and its states pooled one by one."""
    from transformers import AutoModel, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(bert)(text)["input_ids"]
    net = AutoModel.from_pretrained(bert).to(torch.get_default_dtype()).eval()
    with torch.no_grad():
        states = net(input_ids=torch.tensor([ids])).last_hidden_state[0]
    rows = [states[i] for i in range(len(ids))]
    if pooling == "cls":
        return rows[0]
    if pooling == "max":
        return torch.stack([max(values) for values in zip(*rows, strict=True)])
    return sum(rows[1:], rows[0]) / len(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_is_that_of_each_text_alone(bert: Path, pooling: str) -> None:
    torch.set_default_dtype(torch.float64)
    model = made(bert, pooling=pooling)
    ids = nn.functional.pad(model.encode(TEXTS), (0, 3))
    assert (ids[4] > 0).sum() == 2  # [CLS] and [SEP]: a text without a word
    features = model(ids)
    expected = torch.stack([by_hand(bert, text, pooling) for text in TEXTS])
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-10)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    unit = made(bert, pooling=pooling, normalize=True, scale=3.0)(ids)
    torch.testing.assert_close(unit, 3 * expected / expected.square().sum(1, keepdim=True).sqrt())


def test_texts_are_cut(bert: Path) -> None:
    assert made(bert, max_tokens=4).encode(TEXTS).shape == (len(TEXTS), 4)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_cached_embeddings_are_those_of_the_encoder(
    bert: Path, pooling: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    direct = made(bert, pooling=pooling, normalize=True, scale=2.0)
    frozen = made(bert, pooling=pooling, normalize=True, scale=2.0, tune="frozen")
    assert not [*frozen.parameters()]
    assert not frozen.state_dict()
    monkeypatch.setattr(pretrained, "BATCH_SIZE", 2)
    state = torch.get_rng_state()
    embedded = frozen.encode(TEXTS)
    assert torch.equal(torch.get_rng_state(), state)  # a run draws the same whether its embeddings are cached or not
    torch.testing.assert_close(frozen(embedded), direct(direct.encode(TEXTS)), rtol=1e-5, atol=1e-5)
    assert "6/6 texts" in capsys.readouterr().err
    monkeypatch.setattr(encoder, "load", None)  # nothing is embedded again
    again = made(bert, pooling=pooling, normalize=True, tune="frozen")
    assert torch.equal(again.encode(TEXTS), embedded)
    for other in ({"max_tokens": 4}, {"pooling": {"mean": "max"}.get(pooling, "mean")}):
        with pytest.raises(TypeError):  # other embeddings must be made
            made(bert, **{"pooling": pooling, "tune": "frozen", **other}).encode(TEXTS)
    with pytest.raises(TypeError):
        again.encode(TEXTS[::-1])


def test_the_cache_knows_the_files_of_the_model(bert: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    copied.mkdir()
    for file in bert.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert encoder.stamp(copied) == encoder.stamp(bert)
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert encoder.stamp(copied) != encoder.stamp(bert)


def test_lora_starts_as_the_frozen_network_and_learns_its_additions_alone(bert: Path) -> None:
    torch.set_default_dtype(torch.float64)
    whole, model = made(bert), made(bert, tune="lora")
    ids = model.encode(TEXTS)
    assert torch.equal(model(ids), whole(ids))
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 2 * 2 * 6  # two layers of six linear maps each: query, key, value, output, and two of the MLP
    assert all(name.endswith((".up.weight", ".down.weight")) for name in names)
    assert {*model.state_dict()} == {*names}
    model(ids).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(gradients[name].abs().max() > 1e-6 for name in names if ".up." in name)  # type: ignore[union-attr]
    assert all((gradients[name] == 0).all() for name in names if ".down." in name)  # type: ignore[union-attr]
    # Against the weight's own gradient G: y = (W + B A) x has the gradient G A' by B, at B = 0.
    whole(ids).square().sum().backward()
    layer = "encoder.layer.1.output.dense"
    assert model.net is not None
    assert whole.net is not None
    down = model.net.get_parameter(f"{layer}.down.weight")
    expected = whole.net.get_parameter(f"{layer}.weight").grad @ down.detach().T  # type: ignore[operator]
    torch.testing.assert_close(gradients[f"net.{layer}.up.weight"], expected, rtol=1e-9, atol=1e-12)


def test_a_metric_starts_as_the_identity_and_dropout_leaves_that_be(bert: Path) -> None:
    plain, model = made(bert, tune="frozen"), made(bert, tune="frozen", metric=True, dropout=0.5)
    x = plain.encode(TEXTS)
    assert torch.equal(model.train()(x), plain(x))
    assert model(model.example()).shape == (2, 8)
    assert model.metric is not None
    nn.init.eye_(model.metric.weight)
    torch.testing.assert_close(model.eval()(x), 2 * x)


@pytest.mark.parametrize("tune", slow_but(["frozen"], ["frozen", "all", "lora"]))
def test_learners_learn(bert: Path, tune: str) -> None:
    """A prototypical network and MAML, unrolled to the second order."""
    model = made(bert, tune=tune, metric=tune == "frozen")
    x = model.encode([TEXTS[i] for i in (0, 3, 1, 2)])[None]  # queries nearer to the other class
    y = torch.tensor([[0, 1]])
    batch = TaskBatch(Labelled(x[:, :2], y, 2), Labelled(x[:, 2:], y, 2))
    prototypes = construct(composed("algorithm=protonet")["algorithm"]["head"])
    learners = [
        EmbeddingLearner(
            model, SPEC, head=prototypes, train_way=None, train_shot=None, train_query=None, norm="running",
            outer_lr=0.003, halve_every=None,
        ),
        GradientLearner(
            made(bert, tune=tune, metric=tune == "frozen"), SPEC, adapts=ParameterSubset(part="all", norm=False),
            rule=SGD(), loss=TaskLoss(), outer=Unrolled(first_order=False), inner_lr=0.05, inner_steps=2,
            inner_batch=None, test_steps=2, test_batch=None, norm="transductive", head_init=None, train_shot=None,
            train_query=None, outer_optimizer="adam", outer_lr=0.003, halve_every=None, decay_over=None, decay="linear",
        ),
    ]  # fmt: skip
    for learner in learners:
        before = {name: p.detach().clone() for name, p in learner.named_parameters()}
        first = learner.evaluate(batch)["loss"][0, -1]
        for iteration in range(40):
            torch.manual_seed(iteration)
            learner.meta_step(batch, iteration)
        assert learner.evaluate(batch)["loss"][0, -1] < first
        assert any((p != before[name]).any() for name, p in learner.named_parameters())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/nowhere", "must be a folder with a config.json"),
        ("nobody_has_this:model", "package 'nobody_has_this' is not installed"),
        ("metarun:models", "no config.json in"),
    ],
)
def test_what_is_not_there(bert: Path, name: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        Encoder(name=name, **VALUES)
    assert "\n" not in str(caught.value)


def test_a_folder_inside_a_package_and_a_model_of_the_hub(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "with_a_model"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "bert").symlink_to(bert)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert encoder.locate("with_a_model:bert") == package / "bert"

    def snapshot(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert (repository, revision) == ("owner/model", "abc")
        assert "*.safetensors" in allow_patterns
        return str(bert)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert encoder.locate("owner/model@abc") == bert

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no network\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(UserError, match=r"not available from the Hugging Face hub \(no network\); give a folder"):
        encoder.locate("owner/model")


def test_weights_that_are_missing_are_told(bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(bert / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no weights for 1 tensors"):
        made(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read as a model of transformers"):
        made(tmp_path)


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    anew = runpy.run_path(encoder.__file__)  # the module itself does without
    with pytest.raises(UserError, match=r"^model=encoder or model=vision_encoder needs transformers[^\n]*"
                       r"pip install 'metarun\[nlp\]'$"):  # fmt: skip
        anew["Encoder"](name="x", **VALUES)
