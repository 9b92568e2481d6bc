"""Text models: vocabulary and statistics of the meta-train texts, features, and what they start from."""

from __future__ import annotations

import copy
import io
import json
import math
import random
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
from metarun.algorithms.metric.protonet import Prototypes
from metarun.algorithms.metric.transductive import Inductive
from metarun.config.build import build
from metarun.config.compose import compose
from metarun.errors import UserError
from metarun.models.ngrams import NgramBag
from metarun.models.textcnn import TextCNN
from metarun.models.tfidf import TfIdf
from metarun.models.tokens import char_ngrams, pad, word_ngrams, words
from metarun.tasks.episode import Labelled, Spec, TaskBatch
from metarun.training.checkpoint import take_vocabulary

TEXTS = [
    "book a flight to rome",
    "what's the weather in rome?",
    "book a table for two",
    "is my card blocked",
    "block my card, please",
    "a flight a day",
]
BAG: dict[str, Any] = {
    "words": 2, "chars": [2, 4], "max_ngrams": 500, "buckets": 65536, "dim": 8192, "rank": 16, "dropout": 0.5,
    "scale": 3.0,
}  # fmt: skip
CNN: dict[str, Any] = {"embedding": 12, "widths": [1, 3], "filters": 10, "min_texts": 1, "max_words": 8}
TFIDF: dict[str, Any] = {"unit": "char", "shortest": 2, "longest": 4, "min_texts": 1}
MODELS = [(NgramBag, BAG, 8192 + 16), (TextCNN, CNN, 20), (TfIdf, TFIDF, None)]


def bag(**changed: Any) -> NgramBag:
    torch.manual_seed(0)
    return NgramBag(TEXTS, **{**BAG, **changed})


def cosines(features: Tensor) -> Tensor:
    unit = nn.functional.normalize(features, dim=1)
    return unit @ unit.T


def test_tokens() -> None:
    assert words("What's up, Doc?") == ["what", "'", "s", "up", ",", "doc", "?"]
    assert word_ngrams(["a", "b", "c"], 2) == ["a", "b", "c", "a b", "b c"]
    assert char_ngrams("ab", 2, 3) == [" a", "ab", "b ", " ab", "ab "]
    assert char_ngrams("a", 4, 5) == []
    assert pad([[3], [], [1, 2]]).tolist() == [[3, 0], [0, 0], [1, 2]]
    assert pad([]).shape == (0, 1)
    assert pad([[]]).shape == (1, 1)


@pytest.mark.parametrize(("cls", "values", "width"), MODELS)
def test_shapes_and_texts_without_a_word(cls: Any, values: dict[str, Any], width: int | None) -> None:
    model = cls(TEXTS, **values).eval()
    ids = model.encode([*TEXTS, "", "zzz 學"])
    assert not ids.is_floating_point()
    assert ids.shape[0] == 8
    features = model(ids)
    assert features.shape == (8, width or len(model.vocabulary))
    assert features.isfinite().all()
    assert model(model.example()).shape[1] == features.shape[1]


@pytest.mark.parametrize(("cls", "values", "width"), MODELS)
def test_features_do_not_depend_on_the_batch(cls: Any, values: dict[str, Any], width: int | None) -> None:
    torch.manual_seed(1)
    model = cls(TEXTS, **values).eval()
    together = model(model.encode(TEXTS))
    for text, feature in zip(TEXTS, together, strict=True):
        alone = model(model.encode([text]))[0]
        torch.testing.assert_close(alone, feature)
        wider = nn.functional.pad(model.encode([text]), (0, 30))
        torch.testing.assert_close(model(wider)[0], feature)


@pytest.mark.parametrize(("cls", "values", "width"), MODELS)
def test_a_checkpoint_carries_the_vocabulary(cls: Any, values: dict[str, Any], width: int | None) -> None:
    """The file holds plain values only, and a model that takes it encodes new texts as the first did."""
    model = cls(TEXTS, **values).eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = cls(TEXTS[::-1], **values).eval()  # the same words, met in another order
    new = ["a card for rome", "block the weather"]
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.encode(new), model.encode(new))
    assert torch.equal(other(other.encode(new)), model(model.encode(new)))


@pytest.mark.parametrize("cls", [TextCNN, TfIdf])
def test_the_vocabulary_is_in_the_order_of_the_texts(cls: Any) -> None:
    """A model of a seed is the same in every process, whatever order Python's sets happen to have there."""
    letters = [chr(c) for c in range(ord("z"), ord("a") - 1, -1)]
    values = CNN if cls is TextCNN else {"unit": "word", "shortest": 1, "longest": 1, "min_texts": 1}
    assert cls([" ".join(letters)], **values).vocabulary == letters


def test_tfidf_against_a_computation_by_hand() -> None:
    model = TfIdf(["a b a", "b c"], unit="word", shortest=1, longest=1, min_texts=1)
    assert model.vocabulary == sorted(model.vocabulary, key=model.ids.__getitem__)
    once, twice = math.log(3 / 2) + 1, math.log(3 / 3) + 1
    row = {"a": 2 * once, "b": twice, "c": 0.0}  # "c" is not in the text, "new" not in the vocabulary
    length = math.sqrt(sum(v * v for v in row.values()))
    found = model(model.encode(["a a b new"]))[0]
    for word, value in row.items():
        assert found[model.ids[word] - 1].item() == pytest.approx(value / length, rel=1e-6)


def test_tfidf_options() -> None:
    pairs = TfIdf(TEXTS, unit="word", shortest=2, longest=2, min_texts=1)
    assert all(" " in gram for gram in pairs.vocabulary)
    assert "book a" in pairs.vocabulary
    assert set(TfIdf(TEXTS, unit="word", shortest=1, longest=1, min_texts=3).vocabulary) == {"a"}
    with pytest.raises(UserError, match=r"min_texts=99"):
        TfIdf(TEXTS, unit="word", shortest=1, longest=1, min_texts=99)
    with pytest.raises(UserError, match=r"shortest=3"):
        TfIdf(TEXTS, unit="char", shortest=3, longest=2, min_texts=1)


def test_the_bag_starts_near_tfidf() -> None:
    """Its cosines are those of exact TF-IDF on the same n-grams, up to collisions and the directions."""
    model = bag(words=1).eval()

    def grams(text: str) -> set[str]:
        return {g for w in words(text) for g in (f"w{w}", *(f"c{c}" for c in char_ngrams(w, 2, 4)))}

    held = [grams(text) for text in TEXTS]
    every = sorted(set().union(*held))
    idf = [math.log((1 + len(TEXTS)) / (1 + sum(g in each for each in held))) + 1 for g in every]
    exact = torch.tensor([[v * (g in each) for g, v in zip(every, idf, strict=True)] for each in held])
    features = model(model.encode(TEXTS))
    assert (cosines(features) - cosines(exact)).abs().max() < 0.1
    assert (cosines(features[:, :8192]) - cosines(exact)).abs().max() < 0.06
    torch.testing.assert_close(features[:, :8192].norm(dim=1), torch.full((6,), 3.0), rtol=0.05, atol=0)


def test_idf_is_that_of_the_meta_train_texts_and_new_ngrams_weigh_most() -> None:
    model = bag()
    known, new = (model.encode([word])[0].long() for word in ("a", "quixotic"))
    assert model.log_idf[known[0]].exp().item() == pytest.approx(math.log(7 / 4) + 1)
    assert model.log_idf[new].exp().tolist() == pytest.approx([math.log(7) + 1] * len(new))
    assert torch.equal(bag().encode(TEXTS), NgramBag(["other"], **BAG).encode(TEXTS))  # ids need no vocabulary


def test_hashes_are_the_same_in_every_process() -> None:
    """Those by which stored models read their texts: of CRC-32, not Python's own, which differ by process."""
    (ids,) = bag(words=1, chars=[2, 2]).encode(["a b"]).tolist()
    assert ids == [50963, 62441, 51359, 32727, 3239, 24317]


def test_bag_options_are_checked() -> None:
    assert bag(max_ngrams=3).encode(["book a flight"]).shape == (1, 3)
    for changed, word in (
        ({"chars": [3, 2]}, "chars"), ({"chars": [2]}, "chars"), ({"buckets": 100}, "buckets"),
        ({"dropout": 1.0}, "dropout"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"model.{word}"):
            bag(**changed)


def test_cnn_vocabulary_is_that_of_the_meta_train_texts() -> None:
    model = TextCNN(TEXTS, **{**CNN, "min_texts": 2})
    assert set(model.vocabulary) == {"book", "a", "flight", "rome", "my", "card"}
    ids = model.encode(["book zzz rome yyy"])[0]
    assert ids[1] == ids[3] == 1
    assert len({ids[0].item(), ids[2].item(), 0, 1}) == 4
    assert model.encode(["a " * 50]).shape == (1, 8)


def episodes(model: Any, tasks: int = 2) -> TaskBatch:
    """Each task tells flights from cards, by one example each; queries are further texts."""
    ids = model.encode(TEXTS)
    support, query = ids[[0, 3]], ids[[5, 4]]
    y = torch.arange(2).expand(tasks, -1)
    return TaskBatch(*(Labelled(x.expand(tasks, *x.shape), y, 2) for x in (support, query)))


PROTO: dict[str, Any] = {
    "train_way": None, "train_shot": None, "train_query": None, "norm": "running",
    "outer_lr": 0.01, "halve_every": None,
}  # fmt: skip
GRADIENT: dict[str, Any] = {
    "inner_lr": 0.1, "inner_steps": 2, "test_steps": 2, "norm": "transductive", "head_init": None,
    "train_shot": None, "train_query": None, "outer_lr": 0.01, "halve_every": None, "decay_over": None,
    "inner_batch": None, "test_batch": None, "outer_optimizer": "adam", "decay": "linear",
}  # fmt: skip
SPEC = Spec("classification", "text", (), 2)


def maml(model: Any, spec: Spec, **options: Any) -> GradientLearner:
    pieces = {"adapts": ParameterSubset(part="all", norm=False), "rule": SGD(), "loss": TaskLoss()}
    return GradientLearner(model, spec, **pieces, outer=Unrolled(first_order=False), **options)


def protonet(model: Any, spec: Spec, **options: Any) -> EmbeddingLearner:
    head = Prototypes(distance="euclidean", scale=1.0, learn_scale=False, features="none", refine=Inductive())
    return EmbeddingLearner(model, spec, head=head, **options)


@pytest.mark.parametrize(("algorithm", "options"), [(protonet, PROTO), (maml, GRADIENT)])
@pytest.mark.parametrize(("cls", "values", "width"), MODELS)
def test_learns_with_every_learner_and_on_the_meta_device(
    cls: Any, values: dict[str, Any], width: int | None, algorithm: Any, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = cls(TEXTS, **{**values, **({"dropout": 0.0} if cls is NgramBag else {})})
    batch = episodes(model)
    learner = algorithm(model, SPEC, **options)
    dry = copy.deepcopy(learner).to("meta")
    dry.meta_step(batch.map(lambda x: x.to("meta")), 0)
    losses = [float(learner.meta_step(batch, i)["loss"]) for i in range(20)]
    if any(p.requires_grad for p in learner.parameters()):
        assert losses[-1] < 0.7 * losses[0]
    else:
        assert losses[-1] == losses[0]
    assert learner.evaluate(batch)["accuracy"].shape[0] == 2


@pytest.mark.parametrize(("cls", "values", "width"), MODELS[:2])
def test_second_order_meta_gradient_of_a_text_model(cls: Any, values: dict[str, Any], width: int) -> None:
    """Through the model's gathers, sketch and maximum, under vmap: against finite differences in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    small = {"dim": 32, "buckets": 128, "rank": 3, "dropout": 0.0} if cls is NgramBag else {}
    model = cls(TEXTS, **{**values, **small})
    batch = episodes(model)
    learner = maml(model, SPEC, **{**GRADIENT, "inner_lr": 0.5})
    parameters = [p for p in learner.parameters() if p.requires_grad]
    loss, _ = learner.outer_loss(batch)
    gradients = torch.autograd.grad(loss, parameters)
    direction = [torch.randn_like(p) for p in parameters]
    step, values_at = 1e-5, []
    with torch.no_grad():
        for factor in (step, -2 * step):
            for p, d in zip(parameters, direction, strict=True):
                p.add_(factor * d)
            values_at.append(learner.outer_loss(batch)[0].item())
    numeric = (values_at[0] - values_at[1]) / (2 * step)
    analytic = sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True))
    assert analytic == pytest.approx(numeric, rel=1e-6)


def long_texts(seed: int) -> tuple[list[str], Tensor]:
    """Eight classes of ten texts of 600 words: a class repeats three words of its own among words that all have."""
    noise = random.Random(seed)
    common = [f"w{i}" for i in range(400)]

    def text(label: int) -> str:
        return " ".join(f"topic{label}{noise.choice('xyz')}" if noise.random() < 0.05 else noise.choice(common)
                        for _ in range(600))  # fmt: skip

    return [text(label) for label in range(8) for _ in range(10)], torch.arange(8).repeat_interleave(10)


def nearest_prototypes(model: nn.Module, texts: list[str], labels: Tensor) -> float:
    """Accuracy of the prototypes of one text a class on the others."""
    with torch.no_grad():
        x = model.eval()(model.encode(texts))  # type: ignore[operator]
    return float((torch.cdist(x, x[::10]).argmin(1) == labels)[torch.arange(len(x)) % 10 > 0].float().mean())


def test_on_long_texts_the_bag_starts_where_tfidf_does() -> None:
    texts, labels = long_texts(0)
    exact = nearest_prototypes(TfIdf(texts, unit="char", shortest=2, longest=4, min_texts=1), texts, labels)
    default = {**BAG, "words": 1, "max_ngrams": 1024, "buckets": 262144}
    counted = nearest_prototypes(NgramBag(texts, **default, counts=True), texts, labels)
    once = nearest_prototypes(NgramBag(texts, **default), texts, labels)
    assert counted >= exact - 0.02
    assert counted > once + 0.1


def test_words_alone_and_how_often_they_occur() -> None:
    model = NgramBag(TEXTS, **{**BAG, "words": 1, "chars": None}, counts=True)
    row = model.encode(["a flight a day a flight"])[0].tolist()
    assert [n // BAG["buckets"] + 1 for n in row] == [3, 2, 1]
    assert len({n % BAG["buckets"] for n in row}) == 3
    few = NgramBag(TEXTS, **{**BAG, "words": 1, "chars": None, "max_ngrams": 1}, counts=True)
    assert few.encode(["day a flight a a"]).tolist() == [[row[0]]]  # the most frequent


@pytest.mark.parametrize("algorithm", ["maml", "warpgrad"])
def test_a_vocabulary_is_found_however_an_algorithm_names_the_layers(algorithm: str, tmp_path: Path) -> None:
    rows = [{"text": f"word{i} of{c}", "label": f"label{c}"} for c in range(12) for i in range(4)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["task=nlp/text", f"task.file={tmp_path}/texts.jsonl", f"algorithm={algorithm}", "model=text_cnn"]
    run = build(compose([*words, "task.way=2", "task.query=2", "task.test_ways=[]"]).config)
    held = run.algorithm.state_dict()
    (vocabulary,) = [value for name, value in held.items() if name.endswith("_extra_state")]
    empty = TextCNN([], **CNN)
    take_vocabulary(empty, held)
    assert vocabulary
    assert empty.get_extra_state() == vocabulary
