"""What a configuration may not be is refused before anything is built, by the key that is wrong."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.build import build
from metarun.config.catalogue import Entry, catalogue
from metarun.config.check import check, check_section
from metarun.config.compose import compose
from metarun.config.schema import declaration
from metarun.errors import UserError

SINE = compose(["task=regression/sinusoid", "algorithm=reptile", "model.hidden=[4]"]).config
BANDIT = compose(["task=rl/bandit", "algorithm=rl2"]).config
MISSING = object()


def changed(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with another value, or without the key (``MISSING``)."""
    made = copy.deepcopy(config)
    *parents, leaf = key.split(".")
    node = made
    for parent in parents:
        node = node[parent]
    if value is MISSING:
        del node[leaf]
    else:
        node[leaf] = value
    return made


def test_what_is_shipped_passes() -> None:
    check(SINE)
    check(BANDIT)


LASTING = [each for each in catalogue("algorithm") if "${runner.iterations}" in each.section.values()]


@pytest.mark.parametrize("algorithm", LASTING, ids=lambda each: each.name)
def test_what_lasts_as_long_as_training_may_last_no_iteration(algorithm: Entry) -> None:
    """A learner that is only evaluated has runner.iterations=0; a message would name a key that nobody set."""
    section = {key: 0 if value == "${runner.iterations}" else value for key, value in algorithm.section.items()}
    check_section("algorithm", section)


def test_some_last_as_long_as_training() -> None:
    assert len(LASTING) > 5


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        # unknown keys and missing ones, in open and closed sections and in sections within sections
        (SINE, "task.shots", 3),
        (SINE, "runner.iteration", 3),
        (SINE, "algorithm.rule.beta", 0.9),
        (SINE, "task.shot", MISSING),
        (SINE, "runner.iterations", MISSING),
        (SINE, "algorithm.rule.beta1", MISSING),
        # types: nothing is made into what it is not
        (SINE, "task.shot", "5"),
        (SINE, "task.shot", 5.5),
        (SINE, "task.shot", True),
        (SINE, "task.shot", None),
        (SINE, "algorithm.inner_lr", "0.1"),
        (SINE, "runner.plots", 1),
        (SINE, "runner.plots", "yes"),
        (SINE, "runner.directory", 3),
        (SINE, "model.hidden", ["4"]),
        (SINE, "seed", "0"),
        # ranges
        (SINE, "task.shot", 0),
        (SINE, "runner.iterations", -1),
        (SINE, "seed", -1),
        (SINE, "algorithm.inner_lr", 0.0),
        (SINE, "algorithm.rule.beta1", 1.5),
        (BANDIT, "algorithm.discount", 1.01),
        (BANDIT, "algorithm.discount", -0.01),
        (BANDIT, "algorithm.value_weight", -1.0),
        # words
        (SINE, "algorithm.norm", "suport"),
        (SINE, "runner.select", "first"),
        (SINE, "name", "a/b"),
    ],
)
def test_a_wrong_key_or_value_is_named(config: dict[str, Any], key: str, value: Any) -> None:
    with pytest.raises(UserError, match=re.escape(key)):
        check(changed(config, key, value))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=rl/bandit", "algorithm=maml"], "does not fit this task"),
        (["task=regression/sinusoid", "algorithm=protonet"], "does not fit this task"),
        (["task=rl/bandit", "algorithm=rl2", "model=mlp_policy"], "recurrent_policy"),
        (["task=regression/sinusoid", "model=conv4", "algorithm=maml"], "the model reads image"),
        (["task=rl/bandit", "algorithm=maml_trpo", "model=gru_policy"], "not a recurrent_policy"),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(compose(words).config)


def test_a_component_is_of_the_class_that_is_asked_for() -> None:
    rule = {"_target_": "metarun.algorithms.gradient.losses.TaskLoss"}
    with pytest.raises(UserError, match=r"^algorithm\.rule\._target_=.*TaskLoss: not a subclass of .*Rule"):
        check(changed(SINE, "algorithm.rule", rule))


def test_the_seed_alone_decides_where_a_model_starts() -> None:
    def start(seed: int) -> list[torch.Tensor]:
        torch.rand(3)
        return [*build({**SINE, "seed": seed}).algorithm.state_dict().values()]

    first = start(0)
    assert all(torch.equal(a, b) for a, b in zip(first, start(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, start(1), strict=True))


NETS = {
    "own/__init__.py": "from .nets import Net as Exported\nfrom own.nets import Quoted\n",
    "own/nets.py": """from __future__ import annotations
from torch import nn
from metarun.types import Positive as Many

class Net(nn.Module):
    def __init__(self, spec, width: Many = 4, sizes: list[Many] = (1,)):
        super().__init__()

class Quoted(nn.Module):
    def __init__(self, spec, width: "int" = 4, sizes: "list[int]" = (1,)):
        super().__init__()

def made(*, width: Many, sizes: list[int] | None = None):
    ...

Assigned = type("Assigned", (Net,), {})
""",
}


@pytest.mark.parametrize("name", ["nets.Net", "Exported", "Quoted", "nets.made", "nets.Assigned"])
def test_types_of_a_users_class_are_checked_wherever_it_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"own_{name.replace('.', '_').lower()}"
    for file, content in NETS.items():
        path = tmp_path / file.replace("own", package, 1)
        path.parent.mkdir(exist_ok=True)
        path.write_text(content.replace("from own", f"from {package}"))
    monkeypatch.syspath_prepend(tmp_path)
    check_section("model", {"_target_": f"{package}.{name}", "width": 8, "sizes": [1, 2]})
    for key, value in (("width", "abc"), ("sizes", ["a"])):
        with pytest.raises(UserError, match=rf"^model\.{key}="):
            check_section("model", {"_target_": f"{package}.{name}", "width": 8, key: value})
    with pytest.raises(UserError, match=r"unknown key 'model\.widht'"):
        check_section("model", {"_target_": f"{package}.{name}", "width": 8, "widht": 3})


def test_declared_attributes_follow_the_method_resolution_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of sources agrees with Python, also for a class with two bases that share one."""
    (tmp_path / "heirs.py").write_text(
        "class Base:\n"
        "    kinds = ('base',)\n"
        "    def __init__(self, base: int): ...\n"
        "class Left(Base):\n"
        "    def __init__(self, left: int): ...\n"
        "class Right(Base):\n"
        "    kinds, role = ('right',), 'right'\n"
        "    def __init__(self, right: int): ...\n"
        "class Both(Left, Right):\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    both = declaration("heirs.Both")
    assert both.attributes == {"kinds": ("right",), "role": "right"}
    assert list(both.parameters) == ["left"]
    assert both.ancestors == tuple(f"heirs.{name}" for name in ("Both", "Left", "Right", "Base"))
