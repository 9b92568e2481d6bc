"""Waiting for what another process is to bring about."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(what: Callable[[], T], process: subprocess.Popen[Any], seconds: float = 240) -> T:
    """The first true value of ``what()``; fails, with what ``process`` has said, where that ends before."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found
