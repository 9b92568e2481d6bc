"""Combinations of task, algorithm and model that fit train, are evaluated, are restored and step on the meta device.

By default a part of them is walked, which :func:`covering` selects; ``-m slow`` walks the rest.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metarun.config.catalogue
from metarun.cli import main
from metarun.config.build import build, construct
from metarun.config.catalogue import catalogue
from metarun.config.check import CLOSED, INJECTED, check, misfit
from metarun.config.compose import compose
from metarun.config.schema import declaration, is_section
from metarun.errors import UserError
from metarun.tasks.vision.published import class_list
from metarun.training.experiment import Experiment
from metarun.training.findings import protocol
from metarun.types import SPLITS
from tests.histories import random_histories
from tests.models.tiny_bert import tiny_bert
from tests.models.tiny_vit import tiny_vit

TASKS = {e.name: e for e in catalogue("task")}
MODELS = {e.name: e for e in catalogue("model")}
ALGORITHMS = {e.name: e for e in catalogue("algorithm")}
IMAGES = [*catalogue("images")]
Cell = tuple[str, str, str]
"""A task, an algorithm and a model."""
EVERY = [(t, a, m) for t in TASKS for a in ALGORITHMS for m in MODELS]


def fits(task: str, algorithm: str, model: str) -> bool:
    return not misfit(TASKS[task].attributes, MODELS[model].attributes, ALGORITHMS[algorithm].attributes)


IMAGE_SETS = ("mini_imagenet", "cifar_fs", "fc100", "tiered_imagenet", "cub")
"""Differ from vision/folder in how they are read, and from one another in nothing else."""
WITHOUT_WAYS = ("vision/field", "vision/completion", "vision/generation", "nlp/formal_languages")
"""Have no such key, unlike the others of their kind."""
DEEP = ("resnet12", "wrn", "timm", "vision_encoder")
"""Differ from conv4 in their layers alone."""


ALIKE = {
    "vision/omniglot": "conv4",
    "vision/domains": "conv4",
    "nlp/intents": "ngram_bag",
    "nlp/domains": "ngram_bag",
    "nlp/bao": "ngram_bag",
    "nlp/fewrel": "ngram_bag",
    "regression/functions": "mlp",
    "regression/gp": "mlp",
    "regression/quadratics": "linear",
    "vision/field": "siren",
    "vision/completion": "mlp",
    "rl/cartpole": "gru_policy",
    "rl/pendulum": "mlp_policy",
    "rl/maze": "gru_policy",
    **{f"vision/{name}": "conv4" for name in IMAGE_SETS},
}
"""Task families that differ from another one in nothing that depends on the model: walked with this one."""


ROBOTS = ("half_cheetah_vel", "ant_dir", "ant_vel", "walker_random", "hopper_random")
"""Differ from half_cheetah_dir in nothing that depends on algorithm or model."""
SIMULATED = {
    "rl/gym": [("rl2", "gru_policy"), ("maml_trpo", "mlp_policy")],
    "rl/minigrid": [("varibad", "belief_policy")],
    "rl/atari": [("promp", "mlp_policy")],
    "rl/procgen": [("rl2", "transformer_policy")],
    "rl/metaworld": [("maml_vpg", "mlp_policy")],
}
"""Tasks in simulators, which are slow and on no device, and the learners that they are walked with."""
NEEDED = {"rl/minigrid": "minigrid", "rl/atari": "ale_py", "rl/procgen": "procgen", "rl/metaworld": "metaworld"}


def walked(task: str, algorithm: str, model: str) -> bool:
    """Whether the cell is tried: every task and every model with every algorithm; deep models with two."""
    if task.removeprefix("rl/") in ROBOTS:
        return (algorithm, model) == ("promp", "mlp_policy")
    if task in SIMULATED:
        return (algorithm, model) in SIMULATED[task]
    if model in DEEP:
        return task == "vision/folder" and algorithm in ("maml", "protonet")
    if model == "siren":
        return task == "vision/field"
    return model == ALIKE.get(task, model)


FITTING = [cell for cell in EVERY if fits(*cell)]
NOTHING_THERE = {
    "protomaml": {"linear"},  # whose head has no offsets, as that of a prototypical network must
    "boil": {"tfidf", "linear", "encoder"},
    "pmf": {"tfidf", "linear", "encoder"},
    "warpgrad": {"tfidf", "linear", "ngram_bag", "encoder"},
    "warpgrad_steps": {"tfidf", "linear", "ngram_bag", "encoder"},
}
TUNED_FOR_LAYERS = ("regression/sinusoid", "cavia", "linear")
"""The values that suit the pair name a layer and an initialisation, and this model has neither."""
DISCRETE = ("rl/bandit", "rl/gridnavi", "rl/darkroom", "rl/mdp")
"""Families with actions that soft actor-critic cannot squash."""
WITH_EXPERT = DISCRETE
"""Families that tell optimal actions."""
ON_A_GRID = ("regression/sinusoid", "regression/gp", "vision/completion")
"""Families with one or two coordinates, which a convolutional process puts on a grid."""
TOO_WIDE = [
    (t, a, m) for t, m in (("nlp/intents", "tfidf"), ("vision/folder", "linear")) for a in ("matching_fce", "feat")
]
"""Square matrices of so many features would not fit into memory."""
IDLE = [
    cell
    for cell in FITTING
    if (
        cell[2] in NOTHING_THERE.get(cell[1], ())
        or cell == TUNED_FOR_LAYERS
        or cell in TOO_WIDE
        or (cell[1] == "pearl" and cell[0] in DISCRETE)
        or (cell[1] == "dpt" and cell[0] not in WITH_EXPERT)
        or (cell[1] == "convcnp" and (cell[0] not in ON_A_GRID or cell[2] != "linear"))
    )
    and walked(*cell)
]
"""The body alone adapts, and has no parameters; or is warped, and has no layers; ...: refused when built."""
WORKING = [cell for cell in FITTING if cell not in IDLE and walked(*cell)]
ON_META = [cell for cell in WORKING if cell[0] not in ALIKE and cell[0] not in SIMULATED and cell[2] != "scikit_learn"]


def cost(cell: Cell) -> tuple[bool, ...]:
    """Sorts cells: first those without simulator, deep network or data, then those of the task's own defaults."""
    task, algorithm, model = cell
    section, defaults = TASKS[task].section, TASKS[task].content.get("defaults", [])
    return (
        task in SIMULATED or "robot" in section,
        model in (*DEEP, "encoder"),
        task in ALIKE,
        bool({"root", "file", "dataset"} & section.keys()),
        len(ALGORITHMS[algorithm].attributes["roles"]) > 1,
        {"override /model": model} not in defaults,
        {"override /algorithm": algorithm} not in defaults,
    )


def traits(cell: Cell) -> set[tuple[str, ...]]:
    """The pairings that a cell tries."""
    task, algorithm, model = cell
    kind, modality = TASKS[task].attributes["kind"], TASKS[task].attributes["modality"]
    return {("algorithm", algorithm, kind, modality), ("task", task), ("model", model)}


def covering(cells: Iterable[Cell], traits: Callable[[Cell], set[tuple[str, ...]]]) -> list[Cell]:
    """The cheapest of ``cells`` that together have every trait of all of them."""
    chosen, seen = [], set[tuple[str, ...]]()
    for cell in sorted(cells, key=cost):
        if not traits(cell) <= seen:
            chosen.append(cell)
            seen |= traits(cell)
    return chosen


def walk(cells: list[Cell], chosen: list[Cell]) -> list[Any]:
    """Parameters of a test: ``cells``, of which those not ``chosen`` are slow."""
    chosen_ones = set(chosen)
    return [
        pytest.param(cell, id="-".join(cell), marks=[] if cell in chosen_ones else pytest.mark.slow) for cell in cells
    ]


CHOSEN = covering(WORKING, traits)
META = {*covering(ON_META, lambda cell: {cell[1:2]}), *(cell for cell in ON_META if cell not in CHOSEN)}
"""Cells that step on the meta device too: one for each algorithm, and all of the slow ones."""
CHOSEN_IDLE = covering(IDLE, lambda cell: {cell[1:]})
GRADIENT = [name for name, e in ALGORITHMS.items() if str(e.section["_target_"]).endswith(".GradientLearner")]
POLICY_GRADIENT = [n for n, e in ALGORITHMS.items() if str(e.section["_target_"]).endswith(".PolicyGradientLearner")]
METRIC = [name for name, e in ALGORITHMS.items() if "head" in e.section]
CLASSIFIERS = [name for name in METRIC if "classifier" in ALGORITHMS[name].section]
EPISODIC = [name for name in METRIC if name not in CLASSIFIERS]
REFINED = [name for name in METRIC if "refine" in ALGORITHMS[name].section["head"]]
UNFIT = [cell for cell in EVERY if not fits(*cell)]
COMMON = [
    "runner.plots=false",
    "tracker.wandb=disabled",
    "runner.threads=1",
    "runner.device=cpu",
    "name=contract",
]
# The smallest of everything that still has the right shapes.
SMALL = {
    "task=vision": ["task.test_ways=[4]"],
    "task=vision/glyphs": ["task.way=3", "task.query=2", "task.test_ways=[2]", "task.size=16"],
    "task=vision/field": ["task.images.size=12"],
    "task=vision/completion": ["task.images.size=12", "task.shot=20", "task.test_shots=[5]"],
    "task=vision/generation": ["task.way=4", "task.judge.episodes=2", "task.judge.width=4", "task.judge.neighbours=2"],
    "model=set_unet": ["model.width=8"],
    "algorithm=flow": ["algorithm.steps=3", "algorithm.train_way=null"],
    "model=siren": ["model.width=8", "model.depth=2"],
    "task=nlp": ["task.test_ways=[4]"],
    "task=nlp/domains": ["task.way=2", "task.query=2", "task.test_ways=[]"],
    "task=nlp/bao": ["task.way=2", "task.query=2", "task.test_ways=[]"],
    "task=nlp/fewrel": ["task.way=2", "task.query=2", "task.test_ways=[]"],
    "task=nlp/formal_languages": ["task.shot=3", "task.query=2", "task.lengths=[3,6]"],
    "model=symbols": ["model.width=8"],
    "task=nlp/intents": ["task.dataset=HWU64"],
    "task=rl/bandit": ["task.pulls=4"],
    "task=rl/gridnavi": ["task.size=3", "task.horizon=4", "task.episodes=2"],
    "task=rl/navigation": ["task.horizon=5"],
    "task=rl/sparse_navigation": ["task.horizon=4", "task.episodes=3"],
    "task=rl/cartpole": ["task.horizon=8"],
    "task=rl/pendulum": ["task.horizon=8"],
    "task=rl/maze": ["task.horizon=8", "task.size=3", "task.episodes=2"],
    **{f"task=rl/{name}": ["task.horizon=4", "task.threads=1"] for name in ("half_cheetah_dir", *ROBOTS)},
    **{
        f"task={name}": ["algorithm.test_rollouts=2", "task.episodes=2", "task.horizon=3", "runner.meta_batch=2", *keys]
        for name, keys in (
            ("rl/gym", ["task.sampler=tests.tasks.poles"]),
            ("rl/minigrid", []),
            ("rl/atari", []),
            ("rl/procgen", ["task.shrink=4"]),
            ("rl/metaworld", []),
        )
    },
    "task=rl/darkroom": ["task.horizon=4", "task.size=3", "task.episodes=2", "task.held_out=2"],
    "task=rl/mdp": ["task.states=3", "task.horizon=4", "task.episodes=2"],
    **{
        f"task=vision/{name}": ["task.way=2", "task.query=1", "task.test_ways=[]", "task.size=16", "task.whole=false",
                                "task.crop=2", "task.flip=true", "task.jitter=0.4"]
        for name in IMAGE_SETS
    },
    "task=vision/folder": ["task.way=2", "task.query=2", "task.test_ways=[]"],
    "task=nlp/text": ["task.way=2", "task.query=2", "task.test_ways=[]"],
    **{f"algorithm={name}": ["algorithm.train_way=null", "algorithm.train_query=2"] for name in EPISODIC},
    # Many steps from random features multiply rounding errors.
    "algorithm=tim": ["algorithm.train_way=null", "algorithm.train_query=2", "algorithm.head.refine.steps=3"],
    "algorithm=ptmap": ["algorithm.train_way=null", "algorithm.train_query=2", "algorithm.head.refine.steps=3",
                        "algorithm.head.refine.sinkhorn_steps=3"],
    "algorithm=r2d2": ["algorithm.train_way=null"],
    **{
        f"algorithm={name}": [
            "algorithm.train_way=3",
            "algorithm.train_shot=2",
            *(["algorithm.head.epochs=2"] if "epochs" in ALGORITHMS[name].section["head"] else []),
        ]
        for name in CLASSIFIERS
    },
    "model=conv4": ["model.width=4", "model.depth=1"],
    "model=resnet12": ["model.widths=[4,4,4]", "task.size=20"],
    "model=wrn": ["model.depth=10", "model.width=1", "task.size=20"],
    "model=timm": ["model.name=resnet10t", "task.size=32"],
    "model=vision_encoder": ["model.tune=all"],
    "model=mlp": ["model.hidden=[8,8]"],
    "model=ngram_bag": ["model.buckets=256", "model.dim=32", "model.rank=4"],
    "model=text_cnn": ["model.embedding=8", "model.filters=4"],
    "task=optimization/networks": ["task.examples=64", "task.widths=[2,4]", "runner.meta_batch=3"],
    "algorithm=learned_optimizer": ["algorithm.inner_steps=4", "algorithm.unroll=2", "algorithm.test_steps=3"],
    "task=regression/functions": ["task.size=3", "task.shot=4"],
    "task=tabular/prior": ["task.way=3", "task.columns=[2,3]", "task.least_shot=5", "task.shot=6", "task.query=4"],
    "task=tabular/csv": ["task.way=3", "task.splits=2", "task.train=0.4", "task.val=0.2", "runner.meta_batch=2"],
    "task=tabular/sklearn": ["task.splits=2", "task.train=0.4", "task.val=0.2", "task.shot=9", "runner.meta_batch=2"],
    "task=tabular/prior_regression": ["task.columns=[2,3]", "task.least_shot=5", "task.shot=6", "task.query=4"],
    "model=table_transformer": ["model.width=8", "model.row_width=8", "model.heads=2", "runner.meta_batch=2"],
    "algorithm=tnp": ["algorithm.width=8", "algorithm.layers=2"],
    **{f"algorithm={name}": ["algorithm.width=16"] for name in ("cnp", "np", "anp")},
    "algorithm=lasso": ["algorithm.iterations=5"],
    "algorithm=pmf": ["algorithm.test_steps=2"],
    "model=scikit_learn": ["model.estimator=decision_tree"],
    "algorithm=in_context": ["algorithm.width=8", "runner.meta_batch=2"],
    "algorithm=in_context_language": ["algorithm.width=8", "algorithm.ngrams=[1]", "runner.meta_batch=2"],
    "algorithm=baum_welch": ["algorithm.states=3", "algorithm.iterations=2", "runner.meta_batch=2"],
    "algorithm=snail": ["algorithm.keys=[4,4]", "algorithm.values=[4,4]", "algorithm.filters=4", "runner.meta_batch=2",
                        "algorithm.train_query=null"],
    "algorithm=mann": ["algorithm.controller=8", "algorithm.slots=6", "algorithm.width=4", "runner.meta_batch=2",
                       "algorithm.train_query=null"],
    "algorithm=rl2": ["runner.meta_batch=6", "algorithm.epochs=2", "algorithm.minibatches=2"],
    "algorithm=dpt": ["runner.meta_batch=6"],
    "algorithm=ad": ["runner.meta_batch=6", "algorithm.context=5"],
    "algorithm=rl2_trpo": ["runner.meta_batch=6", "algorithm.cg_iterations=3", "algorithm.value_epochs=2"],
    "algorithm=varibad": ["runner.meta_batch=6", "algorithm.epochs=2", "algorithm.bounds=3"],
    "algorithm=pearl": ["runner.meta_batch=3", "algorithm.gradient_steps=2", "algorithm.tasks=3", "algorithm.context=8",
                        "algorithm.batch=6", "algorithm.replay_tasks=4", "algorithm.prior_episodes=1"],
    "model=context_policy": ["model.encoder=[4]", "model.actor=[4]", "model.critics=[4]"],
    "model=transformer_policy": ["model.width=8", "model.heads=2"],
    "model=snail_policy": ["model.width=4", "model.span=4"],
    "model=belief_policy": ["model.embedding=4", "model.hidden=4", "model.decoder=[4]", "model.policy=[4]"],
    **{f"algorithm={name}": ["runner.meta_batch=2", "algorithm.rollouts=3", "algorithm.test_rollouts=3",
                             "algorithm.test_steps=2"] for name in POLICY_GRADIENT},
    **{f"algorithm={name}": ["runner.meta_batch=2", "algorithm.inner_steps=2", "algorithm.test_steps=2"]
       for name in GRADIENT},
    "algorithm=scratch": ["algorithm.test_steps=3"],
    "algorithm=ml3": ["runner.meta_batch=2", "algorithm.inner_steps=2", "algorithm.test_steps=2"],
    **{f"algorithm={name}": ["runner.meta_batch=2", "algorithm.inner_steps=4", "algorithm.outer.unroll=2",
                             "algorithm.test_steps=3"] for name in ("l2l", "l2l_mlp", "pes")},
}  # fmt: skip


def test_every_option_is_walked() -> None:
    for cells in (WORKING, CHOSEN):
        for walked, there in zip(zip(*cells, strict=True), (TASKS, ALGORITHMS, MODELS), strict=True):
            assert set(walked) == set(there)
    assert {(a, TASKS[t].attributes["kind"]) for t, a, _ in CHOSEN} == {
        (a, kind) for a, entry in ALGORITHMS.items() for kind in entry.attributes["kinds"]
    }
    assert {algorithm for _, algorithm, _ in {*CHOSEN} & META} == set(ALGORITHMS)


@pytest.fixture(scope="session")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A user's own folder of images and file of texts."""
    root = tmp_path_factory.mktemp("own")
    noise = np.random.default_rng(0)
    rows = []
    for c in range(12):
        folder = root / "images" / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(noise.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{i}.png")
            rows.append({"text": f"text {i} about subject {c} with word{c * i}", "label": f"label{c}"})
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    topics = [{"label": c, "text": ["text", str(i), f"of{c}"]} for c in range(41) for i in range(6)]
    (root / "huffpost.json").write_text("\n".join(map(json.dumps, topics)))
    for name, relations in (("train", range(8)), ("val", range(8, 12))):
        about = {"h": ["who", "Q1", [[0]]], "t": ["what", "Q2", [[2]]]}
        sentences = {
            f"P{r}": [{"tokens": ["who", f"made{r}", "what", str(i)], **about} for i in range(6)] for r in relations
        }
        (root / f"{name}_wiki.json").write_text(json.dumps(sentences))
    (root / "tables").mkdir()
    for name in "abcde":
        lines = [f"{i * i % 11},{'ox'[i % 2]},{'yes' if i % 3 else 'no'}" for i in range(12)]
        (root / "tables" / f"{name}.csv").write_text("\n".join(["a,b,class", *lines]))
    return {
        "tabular/csv": [f"task.root={root}/tables"],
        **{f"vision/{name}": [f"task.root={image_set(name, root / name)}"] for name in IMAGE_SETS},
        "vision/folder": [f"task.root={root}/images"],
        "nlp/text": [f"task.file={root}/texts.jsonl"],
        "nlp/domains": ["task.domains=[nlp/text]", f"task.domains.text.file={root}/texts.jsonl"],
        "nlp/bao": [f"task.root={root}"],
        "nlp/fewrel": [f"task.root={root}"],
    }


def image_set(name: str, root: Path) -> Path:
    """Two classes of each split of a published set, four images each, in folders named by the classes."""
    listed = class_list(name)
    noise = np.random.default_rng(0)
    for split in SPLITS:
        for label in [label for label, (home, _) in listed.items() if home == split][:2]:
            (root / label).mkdir(parents=True)
            for i in range(4):
                image = Image.fromarray(noise.integers(0, 256, (20, 24, 3), dtype=np.uint8))
                image.save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained encoder; skips without transformers."""
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained encoder of images; skips without transformers."""
    return tiny_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def _embeddings(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings are kept beside their model, and made once for all cells."""
    monkeypatch.setenv("METARUN_CACHE", str(bert.parent / f"{bert.name}-cache"))


def experiment(cell: Cell, own_data: dict[str, list[str]], request: pytest.FixtureRequest) -> Experiment:
    return build(compose(choices(cell, own_data, request)).config)


def choices(cell: Cell, own_data: dict[str, list[str]], request: pytest.FixtureRequest) -> list[str]:
    """The words of a command line for the cell; skips where it needs what is not there."""
    task, algorithm, model = cell
    if model == "scikit_learn" or task == "tabular/sklearn":
        pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    if model == "timm":
        pytest.importorskip("timm", reason="timm does not import here", exc_type=Exception)
    if "robot" in TASKS[task].section:
        pytest.importorskip("mujoco", reason="MuJoCo is not installed")
    if task in SIMULATED:
        needed = NEEDED.get(task, "gymnasium")
        pytest.importorskip(needed, reason=f"task={task} needs {needed}")
    if task in ("vision/omniglot", "nlp/intents"):
        request.getfixturevalue("data_root")
    words = [f"task={task}", f"algorithm={algorithm}", f"model={model}"]
    if model == "encoder":
        request.getfixturevalue("_embeddings")
        words.append(f"model.name={request.getfixturevalue('bert')}")
    if model == "vision_encoder":
        words.append(f"model.name={request.getfixturevalue('vit')}")
    small = [
        o
        for key, overrides in SMALL.items()
        if any(w == key or w.startswith(key + "/") for w in words)
        and (key not in ("task=vision", "task=nlp") or task not in WITHOUT_WAYS)
        for o in overrides
    ]
    words += [*small, *own_data.get(task, []), *COMMON]
    return [*words, *histories(words)] if algorithm == "ad" else words


def histories(words: list[str]) -> list[str]:
    """Learning histories of random steps, in the working directory."""
    spec = construct(compose(words).config["task"], seed=0).spec
    return [f"algorithm.histories={random_histories(Path('histories').absolute(), spec, 16)}"]


def evaluated(run: Experiment) -> dict[str, Any]:
    torch.manual_seed(0)
    return run.algorithm.evaluate(run.task.batch("val", range(2)))


def stepped(run: Experiment, iteration: int) -> dict[str, Any]:
    torch.manual_seed(iteration)
    size = run.runner.meta_batch
    batch = run.task.batch(
        "train", range(iteration * size, (iteration + 1) * size), run.algorithm.train_shape(run.task.shape)
    )
    return run.algorithm.meta_step(batch, iteration)


@pytest.mark.parametrize("cell", walk(WORKING, CHOSEN))
def test_fitting_cell(cell: Cell, own_data: dict[str, list[str]], request: pytest.FixtureRequest) -> None:
    config = compose(choices(cell, own_data, request)).config
    run, again = build(copy.deepcopy(config)), build(copy.deepcopy(config))
    metrics = stepped(run, 0)
    assert all(v.dim() == 0 and torch.isfinite(v) and not v.requires_grad for v in metrics.values())
    state = run.algorithm.checkpoint()
    for shape in run.task.variants().values():
        if run.algorithm.accepts(shape):
            run.algorithm.evaluate(run.task.batch("test", range(1), shape))

    # A checkpoint holds all that changes: the next step and its evaluation are repeated to the bit.
    torch.save(state, "state.pt")
    stepped(run, 1)
    after = evaluated(run)
    assert run.task.metric in after
    for values in after.values():
        assert values.shape[0] == 2
        assert values.dim() == 2
        assert torch.isfinite(values).all()
    saved = torch.load("state.pt", weights_only=True)
    if not run.algorithm.learns:  # the runner leaves its steps out, so they must change nothing
        for name, value in run.algorithm.state_dict().items():
            before = saved["parameters"][name]
            assert torch.equal(value, before) if isinstance(value, torch.Tensor) else value == before, name
    again.algorithm.restore(saved)
    stepped(again, 1)
    for name, values in evaluated(again).items():
        assert torch.equal(values, after[name]), name
    json.dumps(protocol(run.task, run.algorithm, run.runner))

    if cell in META:  # a step reads no value back from its device
        dry = build(config)
        to_meta(dry)
        assert all(p.device.type == "meta" for p in dry.algorithm.parameters())
        assert all(v.device.type == "meta" for v in stepped(dry, 0).values())


@pytest.mark.parametrize("cell", walk(IDLE, CHOSEN_IDLE))
def test_nothing_to_adapt_is_refused(
    cell: Cell, own_data: dict[str, list[str]], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(
        UserError,
        match=r"no parameters there to adapt|no layer to warp|a head with offsets|unknown key 'model.init'|too wide"
        r"|are discrete|one or two coordinates|does not tell",
    ):
        experiment(cell, own_data, request)


def to_meta(run: Experiment) -> None:
    """Move task, parameters and optimizers; an optimizer must follow, since parameters become new objects."""
    before = {id(p): name for name, p in run.algorithm.named_parameters()}
    run.algorithm.to("meta")
    run.task.to(torch.device("meta"))
    after = dict(run.algorithm.named_parameters())
    for optimizer in (
        v for m in run.algorithm.modules() for v in vars(m).values() if isinstance(v, torch.optim.Optimizer)
    ):
        for group in optimizer.param_groups:
            group["params"] = [after[before[id(p)]] for p in group["params"]]


@pytest.fixture
def _options_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal reads every option, and so does ``show``."""
    monkeypatch.setattr("metarun.config.catalogue._load", cache(metarun.config.catalogue._load))


@pytest.mark.usefixtures("_options_are_read_once")
def test_unfit_cells_are_refused_with_what_fits() -> None:
    """Every two that declare the same are tried once: whether they fit is decided by what they declare alone."""
    said = ("kind", "kinds", "modality", "modalities", "role", "roles")
    facts = {
        name: repr({key: e.attributes.get(key) for key in said})
        for entries in (TASKS, ALGORITHMS, MODELS)
        for name, e in entries.items()
    }
    config = compose([]).config
    for task, algorithm, model in covering(UNFIT, lambda cell: {*combinations([facts[name] for name in cell], 2)}):
        config |= {
            "task": TASKS[task].section,
            "algorithm": ALGORITHMS[algorithm].section,
            "model": MODELS[model].section,
        }
        with pytest.raises(UserError, match="what fits: algorithm="):
            check(config)


def declared_sections() -> Iterator[tuple[str, Path, dict[str, Any], str]]:
    """Every section with a class, those inside others too."""

    def within(name: str, path: Path, section: dict[str, Any]) -> Iterator[tuple[str, Path, dict[str, Any], str]]:
        yield name, path, section, str(section["_target_"])
        for key, value in section.items():
            if is_section(value):
                yield from within(f"{name}.{key}", path, value)

    for group in ("task", "model", "algorithm"):
        for entry in catalogue(group):
            yield from within(f"{group}/{entry.name}", entry.path, entry.section)
    for entry in IMAGES:
        yield f"images/{entry.name}", entry.path, entry.section, str(entry.section["_target_"])
    for group, target in CLOSED.items():
        for entry in catalogue(group):
            yield f"{group}/{entry.name}", entry.path, entry.section, target


def test_a_value_is_declared_once() -> None:
    """A YAML holds all of its class's keys and no other, each explained. A class's own default is what runs from before
    the key did, and never what the YAML says."""
    for name, path, section, target in declared_sections():
        declared = declaration(target)
        own = {n: p for n, p in declared.parameters.items() if n not in INJECTED}
        assert set(section) - {"_target_", "defaults"} == set(own), name
        module, _, cls = target.rpartition(".")
        before = {n for n, p in own.items() if not p.required}
        defaults = inspect.signature(getattr(importlib.import_module(module), cls)).parameters if before else {}
        assert all(defaults[n].default != section[n] for n in before), name
        assert all(n in INJECTED or p.annotation is not Any for n, p in declared.parameters.items()), name
        for key in own:
            stated = [line for line in path.read_text().splitlines() if line.strip().startswith(f"{key}:")]
            assert all("#" in line for line in stated), f"{name}: {key} has no comment"


@pytest.mark.usefixtures("_options_are_read_once")
def test_every_name_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for group, names in (("task", TASKS), ("model", MODELS), ("algorithm", ALGORITHMS)):
        for name in names:
            assert main(["show", f"{group}/{name}"]) == 0
            assert "_target_" in capsys.readouterr().out or "defaults" in TASKS.get(name, ALGORITHMS.get(name)).content  # type: ignore[union-attr]
