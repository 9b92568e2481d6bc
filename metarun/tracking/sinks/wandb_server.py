"""Probe of W&B's server, and control of the helper process through which wandb talks to it.

An unresponsive server delays the end of a run by seconds only. Before W&B starts, the server is probed. A run that ends
meanwhile waits :data:`GRACE` more seconds for an answer. W&B's own start is stopped after three tenths of
``finish_timeout``. The offline copy then has :data:`~metarun.tracking.sinks.wandb.FALLBACK` seconds. W&B's reports
about itself are off unless ``WANDB_ERROR_REPORTING`` asks for them: at the end of the process they wait for the server
once more.
"""

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
"""Seconds that W&B's server has for an answer after the run has ended."""


class Probe:
    """Asks W&B's server for any answer, on a thread of its own."""

    def __init__(self, settings: Any) -> None:
        self.url = str(settings.base_url).rstrip("/")
        self.failure: str | None = None
        """Reason why there can be no answer, once known."""
        self._done = threading.Event()
        if settings.http_proxy or settings.https_proxy:  # only W&B itself can use its proxy
            self._done.set()
        else:
            threading.Thread(target=self._ask, name="wandb-probe", daemon=True).start()

    def wait(self, seconds: float, ending: threading.Event) -> bool:
        """Return whether the outcome is known within ``seconds``, or :data:`GRACE` seconds after the event
        ``ending``.
        """
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
            # A refusal counts as an answer, and so does a certificate that only W&B's settings may be able to check.
            refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
            if not refused and not isinstance(error.reason, ssl.SSLError):
                self.failure = f"{self.url} cannot be reached ({error.reason})"
        except (OSError, ValueError, http.client.HTTPException):
            pass  # W&B's own message will be clearer
        self._done.set()


def kill_helper() -> None:
    """Kill wandb's helper process, so that calls that wait for it fail."""
    with contextlib.suppress(Exception):  # the process is a private attribute of wandb
        import wandb

        setup: Any = wandb.setup()
        setup._connection._proc._process.kill()


def forget_helper() -> None:
    """Kill wandb's helper process and let wandb start a new one when needed."""
    kill_helper()
    with contextlib.suppress(Exception, SystemExit):  # wandb raises SystemExit when its helper is gone
        import wandb

        wandb.teardown()


def refused(helper_log: Path) -> bool:
    """Return whether uploads ended early (run deleted, key withdrawn), which W&B reports only in its own log."""
    return helper_log.exists() and b"filestream: fatal error" in read_bytes(helper_log)


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
