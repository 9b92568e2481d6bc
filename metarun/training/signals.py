"""Signals (Ctrl-C, SIGTERM, a closed terminal, preemption) as requests to stop after the current iteration."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from metarun import stopping


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM is recorded in :attr:`signal`; a second one stops at once.

    SIGHUP, sent when a terminal closes, is recorded however often it comes, unless it is ignored as under ``nohup``. In
    a submitit job, the preemption signal is recorded likewise. SIGTERM only announces preemption there: it requests a
    checkpoint (:attr:`save`) and the run continues, since a job that ends now would not be requeued. :func:`hand_on`
    passes the signal to submitit after the checkpoint.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        stopping.listen(lambda: self.signal)
        if threading.current_thread() is threading.main_thread():
            handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM), self._note)
            handlers |= dict.fromkeys(hangup_signals(), self._stop)
            if (preempts := preemption()) is not None:
                handlers |= {signal.SIGINT: self._stop, signal.SIGTERM: self._save, preempts: self._stop}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopping.forget()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal in (signal.SIGINT, signal.SIGTERM):
            raise KeyboardInterrupt
        self.signal = number

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


def stopping_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop."""
    return [signal.SIGINT, signal.SIGTERM, *hangup_signals()]


def hangup_signals() -> list[signal.Signals]:
    """Return SIGHUP, unless it is ignored or, on Windows, does not exist."""
    return [s for s in signal.Signals if s.name == "SIGHUP" and signal.getsignal(s) != signal.SIG_IGN]


def preemption() -> signal.Signals | None:
    """Return the signal of preemption or time limit, if this process is a submitit job."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    return number if callable(signal.getsignal(number)) else None  # child processes of a job lack the handler


def hand_on(number: int) -> None:
    """Pass the signal that stopped a run to submitit, which requeues the job and ends this process.

    Other signals are ignored.
    """
    if number == preemption():
        signal.raise_signal(number)
