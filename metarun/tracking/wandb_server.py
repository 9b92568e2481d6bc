"""Whether W&B's server answers, and the helper process through which W&B talks to it."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from metarun.untrusted import read_bytes

GRACE = 3.0
"""Seconds that W&B's server has for an answer once the run has ended."""


class Probe:
    """Asks W&B's server for an answer, whatever it is, on a thread of its own."""

    def __init__(self, settings: Any) -> None:
        self.url = str(settings.base_url).rstrip("/")
        self.failure: str | None = None
        """Why there can be no answer, once that is known."""
        self._done = threading.Event()
        if settings.http_proxy or settings.https_proxy:  # W&B's own, which it alone knows how to use
            self._done.set()
        else:
            threading.Thread(target=self._ask, name="wandb-probe", daemon=True).start()

    def wait(self, seconds: float, ending: threading.Event) -> bool:
        """Whether the outcome is known within so many seconds, or :data:`GRACE` seconds after the event ``ending``."""
        end, over = time.monotonic() + seconds, None
        while not self._done.wait(0.05):
            now = time.monotonic()
            if ending.is_set() and over is None:
                over = now + GRACE
            if now > end or (over is not None and now > over):
                return False
        return True

    def _ask(self) -> None:
        request = urllib.request.Request(
            f"{self.url}/graphql", data=b'{"query":"{__typename}"}', headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60):
                pass
        except urllib.error.URLError as error:
            # A refusal is an answer, and so is a certificate that only W&B's settings may know how to check.
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if not refused and not isinstance(error.reason, ssl.SSLError):
                self.failure = f"{self.url} cannot be reached ({error.reason})"
        except (OSError, ValueError, http.client.HTTPException):
            pass  # W&B will find a better word for it
        self._done.set()


def kill_helper() -> None:
    """End wandb's helper process: what waits for it fails, and so it would when this process ends."""
    with contextlib.suppress(Exception):  # wandb keeps its process to itself
        import wandb

        setup: Any = wandb.setup()
        setup._connection._proc._process.kill()


def forget_helper() -> None:
    """End wandb's helper process and let wandb start another when it needs one."""
    kill_helper()
    with contextlib.suppress(Exception, SystemExit):  # the connection is lost, and wandb would exit as its helper did
        import wandb

        wandb.teardown()


def refused(helper_log: Path) -> bool:
    """Whether uploads ended early (run deleted, key withdrawn); W&B says so only in its own log."""
    return helper_log.exists() and b"filestream: fatal error" in read_bytes(helper_log)


def reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
