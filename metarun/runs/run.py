"""A run directory as a Python object: its configuration, metrics, summary and learner."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from metarun.config.trust import Trust
from metarun.errors import Interrupted, UserError, nearest
from metarun.runs.agent import TrainedAgent, agent_of
from metarun.runs.learner import TrainedLearner, learner_of
from metarun.runs.resume import resume_run
from metarun.runs.stored import reread
from metarun.runs.words import value_words
from metarun.tracking.console import shown
from metarun.tracking.rundir import RunDirectory


@dataclass(frozen=True)
class Run:
    """A run directory. Its files are read when they are asked for."""

    path: Path
    """The run directory."""
    trust: Trust = field(default_factory=Trust, repr=False)
    """Which code beside metarun's own the stored configuration may call."""
    objects: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The sections whose components are Python objects."""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return self._directory.config()

    @property
    def status(self) -> str:
        """``running``, ``finished``, ``interrupted``, ``pruned``, ``failed`` or ``killed``; empty if not known."""
        return str(self._directory.status().get("state", ""))

    @property
    def metrics(self) -> Table:
        """The rows of metrics.jsonl."""
        return Table(list(self._directory.rows()))

    @property
    def summary(self) -> dict[str, Any]:
        """The result: ``summary["test"][metric]`` holds ``mean``, ``ci95`` (half width) and ``n`` (test tasks).

        Raises:
            UserError: The run has not finished.
        """
        found = self._directory.summary()
        if found is None:
            raise UserError(f"{self.path} has no result: the run is {self.status or 'not finished'}")
        return found

    @property
    def learner(self) -> TrainedLearner:
        """The learner that the run tests, with its meta-trained parameters.

        Raises:
            UserError: The run's learner is an RL learner (:attr:`agent`), its checkpoint is damaged, or it names code
                that is not trusted.
        """
        with torch_settings():
            return learner_of(*reread("load", [str(self.path)], (), self.trust, self.objects), self.objects)

    @property
    def agent(self) -> TrainedAgent:
        """The RL learner that the run tests, with its meta-trained parameters.

        Raises:
            UserError: The run learns from support sets, its checkpoint is damaged, or it names code that is not
                trusted.
        """
        with torch_settings():
            return agent_of([str(self.path)], self.trust, self.objects)

    def resume(self, *overrides: str | Mapping[str, Any], display: bool = False, **settings: Any) -> Run:
        """Continue a stopped run exactly, or train a finished one longer, as ``metarun resume`` does.

        ``run.resume(runner={"iterations": 2000})`` trains up to iteration 2000. A finished run without changes stays as
        it is.

        Args:
            overrides: Changes of ``runner.`` or ``tracker.`` keys, as in :func:`metarun.experiment`.
            display: Whether progress and messages are shown on stderr.
            settings: Keys with their values, as in :func:`metarun.experiment`.

        Returns:
            This run, with its new rows and summary.

        Raises:
            UserError: A change is not possible, or the data are not those the run was made of.
            RunFailed: Training failed.
            KeyboardInterrupt: Ctrl-C, after a checkpoint.
        """
        words = value_words("resume", *overrides, settings)
        with shown(display), torch_settings(), keyboard_interrupts():
            resume_run([str(self.path), *words], self.trust, self.objects)
        return self

    @property
    def _directory(self) -> RunDirectory:
        return RunDirectory.open(self.path)


class Table(Sequence[dict[str, Any]]):
    """Rows of metrics. ``table[i]`` is a row, ``table["val/accuracy"]`` a column (``None`` where a row lacks it)."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order in which they first occur."""
        return list({name: None for row in self.rows for name in row})

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.rows[key]
        if key not in self.columns:
            raise KeyError(f"no column '{key}'{nearest(key, self.columns)}   columns: {', '.join(self.columns)}")
        return [row.get(key) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Table of {len(self)} rows: {', '.join(self.columns)}"

    def to_pandas(self) -> Any:
        """Return the table as a ``pandas.DataFrame``; raises :class:`UserError` if pandas is not installed."""
        try:
            import pandas
        except ImportError:
            raise UserError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame(self.rows)


@contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in place of the exception of a run that Ctrl-C stopped."""
    try:
        yield
    except Interrupted as error:
        if error.signal_number == signal.SIGINT:
            raise KeyboardInterrupt(str(error)) from error
        raise


@contextmanager
def torch_settings() -> Iterator[None]:
    """Leave torch's default type and number of threads as they were."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
