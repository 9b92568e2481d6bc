"""Every package says what lives in it, by the names of modules that are there."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import metarun

ROOT = Path(metarun.__file__).parent
PACKAGES = sorted(path.parent for path in ROOT.rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_a_package_says_what_lives_there(package: Path) -> None:
    said = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    assert said
    here = {path.stem for path in package.iterdir()}
    for name in re.findall(r"``([a-z][a-z_.]*)``", said):
        assert name in here or find_spec(name), f"{package}: {name} is not there"
