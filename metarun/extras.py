"""Packages of the optional extras: imported when they are needed, with a message that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from metarun.errors import UserError

PACKAGES = {"sklearn": "scikit-learn", "ale_py": "ale-py"}
"""Names of packages that are not those of their modules."""


def imported(module: str, what: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: Name of the module.
        what: What needs it, for the message, such as ``task=rl/atari``.
        extra: The extra that installs it.

    Raises:
        UserError: It cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        why = "" if missing else f" ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{what} needs {PACKAGES.get(package, package)}{why}: pip install 'metarun[{extra}]'") from None
