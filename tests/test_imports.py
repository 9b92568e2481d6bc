"""The import graph of metarun: no circles, arrows only towards the packages below, and files of readable size.

Every ``import`` counts, also lazy ones inside functions and those for type checkers only. ``metarun/__init__.py`` is
left out: it names what ``metarun.api`` offers and imports it on demand.
"""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "errors", "extras", "types", "moved", "escape", "style", "streams", "stopping", "progress", "strict_json",
    "untrusted", "locks", "distributed",
    "kernels", "tasks", "models", "algorithms", "engine", "evaluation", "tracking", "training",
    "config", "adapted", "runs", "export", "serve", "search", "reports", "bench", "api", "sklearn", "cli", "__main__",
)  # fmt: skip
"""Modules and packages of metarun from the lowest to the highest: each may import those before it."""
LONGEST = 350
LONGEST_EXPERIMENT = 230
TOP_LEVEL = {
    ".ci", ".gitignore", "LICENSE", "README.md", "conf", "metarun", "outputs", "pyproject.toml", "scripts", "tests",
}  # fmt: skip

FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((ROOT / "metarun").rglob("*.py"))
}


def imported(file: Path) -> Iterator[str]:
    """The modules of metarun that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else str(node.module)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {
        module: {name for name in imported(file) if name in FILES and name not in ("metarun", module)}
        for module, file in FILES.items()
        if module != "metarun"
    }


def circles(graph: dict[str, set[str]]) -> list[str]:
    """The modules in circles, or between two: those without imports, or that nothing imports, are taken away."""
    left = {module: set(names) for module, names in graph.items()}
    while free := {m for m, names in left.items() if not names} | left.keys() - set().union(*left.values()):
        left = {module: names - free for module, names in left.items() if module not in free}
    return sorted(left)


def package(module: str) -> str:
    return module.split(".")[1]


def test_no_module_imports_itself_by_way_of_others(graph: dict[str, set[str]]) -> None:
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a", "d"}, "d": set()}) == ["a", "b"]
    assert circles(graph) == []


def test_imports_point_to_lower_packages(graph: dict[str, set[str]]) -> None:
    assert {package(module) for module in graph} == set(ORDER)
    upward = [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if ORDER.index(package(name)) > ORDER.index(package(module))
    ]
    assert upward == []


def test_files_are_short() -> None:
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > LONGEST} == {}


def test_the_experiment_is_short() -> None:
    tree = ast.parse(FILES["metarun.training.experiment"].read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef))
    assert (found.end_lineno or 0) - found.lineno < LONGEST_EXPERIMENT


def test_the_top_level_holds_what_it_says() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    assert {Path(line).parts[0] for line in listed.splitlines()} == TOP_LEVEL
