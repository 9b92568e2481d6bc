"""Every script can be imported: what it takes from the package is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.script import script

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_imports(name: str) -> None:
    assert script(name).__doc__, f"scripts/{name}.py does not say what it does"
