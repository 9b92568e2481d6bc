"""Ctrl-C, SIGTERM, a closed terminal and a scheduler's preemption as a request to stop after this iteration."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Within the block, the first SIGINT or SIGTERM is only noted in :attr:`signal`; a second one stops at once.

    So is SIGHUP, of a terminal that closes, however often it comes; not where it is ignored, as under ``nohup``.
    In a job of submitit, the signal of its preemption is noted too, however often it comes. SIGTERM only announces it
    there: it asks for a checkpoint (:attr:`save`), and the run goes on, since a job that ended now would not be queued
    again. :func:`hand_on` gives submitit the signal after the checkpoint.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: self._stop if number == signal.SIGHUP else self._note for number in stopping_signals()}
            if (preempts := preemption()) is not None:
                handlers |= {signal.SIGINT: self._stop, signal.SIGTERM: self._save, preempts: self._stop}
            for number, handler in handlers.items():
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
    """The signals that ask this process to stop; a SIGHUP that is ignored is left ignored."""
    hangup = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hangup]


def preemption() -> signal.Signals | None:
    """The signal by which this process, if it is a job of submitit, learns of its preemption or its time limit."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return None
    number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    return number if callable(signal.getsignal(number)) else None  # a child of a job has the words, not the handler


def hand_on(number: int) -> None:
    """Give submitit the signal that a run was stopped by: it queues the job again and ends this process.

    Does nothing for a signal that submitit does not wait for.
    """
    if number == preemption():
        signal.raise_signal(number)
