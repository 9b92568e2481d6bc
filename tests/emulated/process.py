"""A process of its own for what runs on the emulated device, since a device is registered for a whole process."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.emulated.device import install


class Emulated:
    """Runs functions, one after another, in a process that has the device: an exception there is raised here."""

    def __init__(self, library: Path) -> None:
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=install, initargs=(library,))

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """``function(*arguments)``, in the caller's working directory."""
        return self.pool.submit(_at, os.getcwd(), dict(os.environ), function, arguments).result()

    def __enter__(self) -> Emulated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.shutdown()


def _at(directory: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    return function(*arguments)
