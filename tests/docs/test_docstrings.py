"""Docstrings of the API and of the base classes that users subclass: arguments, results, errors, shapes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from metarun import api
from metarun.algorithms.gradient import pieces
from metarun.algorithms.rl.policy_gradient import OuterStep
from metarun.models.roles import ROLES, TextEncoder
from metarun.tasks.vision.generation import SampleEvaluator

PUBLIC = [
    *(getattr(api, name) for name in api.__all__ if callable(getattr(api, name))),
    pieces.AdaptedParameters, pieces.InnerLoss, pieces.OuterGradient, OuterStep, SampleEvaluator,
    *ROLES.values(), TextEncoder,
]  # fmt: skip


def functions(public: Any) -> Iterator[tuple[type | None, Callable[..., Any]]]:
    """The function itself, or the public methods that a class defines, each with its class."""
    if not inspect.isclass(public):
        yield None, public
    for name, value in vars(public).items() if inspect.isclass(public) else ():
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield public, function


def missing(owner: type | None, function: Callable[..., Any]) -> list[str]:
    """The parts that the docstring of a function lacks; methods inherit the docstring of those they override."""
    inherited = owner is not None and function.__doc__ is None
    doc = inspect.getdoc(getattr(owner, function.__name__) if owner else function) or ""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    lacks = [] if doc else ["docstring"]
    arguments = re.search(r"^Args:\n((?:    .*\n?|\n)*)", doc, re.MULTILINE)
    for parameter in parameters:
        described = re.search(rf"^    {parameter.name}: (.*(?:\n     .*)*)", arguments[1] if arguments else "", re.M)
        if described is None:
            lacks.append(f"Args: {parameter.name}")
        elif str(parameter.annotation) == "Tensor" and "[" not in described[1]:
            lacks.append(f"Args: shape of {parameter.name}")
    returns = signature.return_annotation not in (None, "None", inspect.Signature.empty)
    if returns and not re.search(r"^(Returns|Yields):|^(Return|Yield|True if|Open|Build|Load|Read)\b", doc, re.M):
        lacks.append("Returns")
    raises = re.search(r"\braise \w+Error|\brequire\(", inspect.getsource(function).replace("NotImplementedError", ""))
    if raises and not inherited and not re.search(r"^Raises:|raises :class:", doc, re.MULTILINE):
        lacks.append("Raises")
    return lacks


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_what_users_call_and_subclass_is_documented(public: Any) -> None:
    assert inspect.getdoc(public)
    lacking = {
        function.__qualname__: lacks for owner, function in functions(public) if (lacks := missing(owner, function))
    }
    assert lacking == {}


def test_what_is_missing_is_noticed() -> None:
    class Documented:
        def f(self, x: Tensor) -> Tensor:  # type: ignore[name-defined]  # noqa: F821
            """Do it.

            Args:
                x: Values [N].

            Returns:
                Values [N].

            Raises:
                ValueError: ``x`` is empty.
            """
            raise ValueError

    def lacks(part: str, instead: str = "") -> list[str]:
        Documented.f.__doc__ = whole.replace(part, instead)
        return missing(Documented, Documented.f)

    whole = str(Documented.f.__doc__)
    assert lacks("nothing") == []
    assert lacks("x: Values", "y: Values") == ["Args: x"]
    assert lacks("x: Values [N]", "x: Values") == ["Args: shape of x"]
    assert lacks("Returns:") == ["Returns"]
    assert lacks("Raises:") == ["Raises"]
    assert "docstring" in lacks(whole)
