"""Weights & Biases as a copy of ``metrics.jsonl`` that never delays or fails a run.

All calls to W&B happen on one daemon thread. The training loop only puts rows into a queue, so importing W&B (a
second), starting it and its failures do not affect the run.

**No row is lost or duplicated.** The W&B step of a row is ten times its iteration, plus one for every further row of
that iteration, and plus nine for its images. (The x axis of the charts is the logged ``iteration``.) Since the step
depends on the rows of ``metrics.jsonl`` only, it identifies the rows that W&B already has. A resumed run continues its
id:

* Online, rows up to the server's last step are skipped, and missing rows are replayed from ``metrics.jsonl``. Rows past
  the checkpoint that are recorded again after a kill keep their first values; an exact resume repeats them anyway.
* Offline, every start writes a new file that begins with all of ``metrics.jsonl``, because a kill destroys the end of
  W&B's own file. Replaced files are renamed to ``replaced-...``, which ``wandb sync`` ignores; it would append their
  rows a second time.
* If W&B fails online, at any time, the run continues in such a complete offline copy. If the server may already have a
  part of the run, the copy gets a new id, for the same reason.
"""

from __future__ import annotations

import logging
import os
import queue
import shlex
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from metarun.tracking.settings import Tracker
from metarun.tracking.sinks import Row, TrackedRun
from metarun.tracking.sinks.wandb_content import final_values, image, model_artifact, numbered, step_after, test_table
from metarun.tracking.sinks.wandb_identity import Identity
from metarun.tracking.sinks.wandb_mode import choose_mode, requested_mode
from metarun.tracking.sinks.wandb_server import GRACE, Probe, forget_helper, kill_helper, reason, refused

log = logging.getLogger("metarun")

FALLBACK = 10.0
"""Seconds for writing the offline copy, in addition to those for W&B at the end."""

NAMED = ("task", "model", "algorithm")
"""Groups whose chosen options are tags."""

Action = Callable[[], None]


class WandbSink:
    """One W&B run. Create it by :meth:`start` and end it by :meth:`finish` in a ``finally`` block.

    No method raises. Only ``finish`` waits for W&B: it returns within ``finish_timeout`` seconds, or :data:`FALLBACK`
    more if W&B failed and an offline copy must be written.
    """

    def __init__(
        self, directory: Path, arguments: dict[str, Any], settings: dict[str, Any], timeout: float, upload: bool
    ) -> None:
        self._directory = directory
        self._arguments = arguments  # of wandb.init
        self._settings = settings  # of wandb.Settings
        self._timeout = timeout
        self._upload = upload  # the checkpoint, at the end
        self._queue: queue.SimpleQueue[Action | None] = queue.SimpleQueue()
        self._step = max((step for step, _ in numbered(directory)), default=-1)  # of the last row given
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()  # the run is over
        self._left = False  # the worker was abandoned; its messages would appear after the result
        # Only the worker thread uses the attributes below.
        self._run: Any = None  # wandb's run; None before the start and after giving up
        self._online = False
        self._starting = False  # W&B is waiting for its server
        self._failed = False
        self._held = 0  # W&B already has the steps below this
        self._reached = self._step  # step of the last row taken from the queue
        self._kept: list[Action] = []  # images and summaries, sent again if the run restarts offline

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        mode: str | None,
        project: str,
        entity: str | None,
        group: str | None,
        tags: Sequence[str],
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        finish_timeout: float,
        init_timeout: float,
        notes: str | None = None,
        checkpoint: bool = False,
    ) -> WandbSink:
        """Start or continue the W&B run of a run directory; returns at once.

        A resumed run must have cut ``metrics.jsonl`` at its checkpoint before this call. W&B is brought up to that
        file.

        Args:
            directory: The run directory.
            mode: "online", "offline", "disabled" (W&B is not even imported), or ``None``: ``WANDB_MODE`` if set, else
                online if there is an API key, else offline.
            project, entity, group, tags, name, job_type, config, notes: As in ``wandb.init``.
            finish_timeout: Seconds to wait for W&B at the end.
            init_timeout: Seconds to wait for W&B at the start.
            checkpoint: True if the tested checkpoint is to be uploaded as an artifact.
        """
        arguments = {
            "dir": str(directory),
            "project": project,
            "entity": entity,
            "group": group,
            "tags": list(dict.fromkeys(tag[:64] for tag in tags if tag)),  # W&B refuses others
            "name": name,
            "notes": notes,
            "job_type": job_type,
            "config": dict(config),
            "reinit": "create_new",  # by default a second run in one process would continue the first
        }
        settings = {
            "console": "off",
            "silent": True,
            "quiet": True,
            "save_code": False,
            "disable_code": True,
            "disable_git": True,  # it would upload the working tree's diff; meta.json names the commit
            "init_timeout": init_timeout,
            # The remaining time is for the offline copy; 0 would mean no limit.
            "finish_timeout": max(0.7 * finish_timeout, 0.1),
            "finish_timeout_raises": True,
        }
        sink = cls(directory, arguments, settings, finish_timeout, checkpoint)
        if requested_mode(mode, os.environ) != "disabled":
            sink._thread = threading.Thread(target=sink._work, args=(mode,), name="wandb", daemon=True)
            sink._thread.start()
        return sink

    def log(self, row: Row) -> None:
        """Send one row; call it for every line of ``metrics.jsonl``, in order, after writing it."""
        self._step = step = step_after(self._step, row)
        row = dict(row)
        self._put(lambda: self._send_row(step, row))

    def image(self, name: str, path: Path) -> None:
        self._put_kept(lambda: self._send_image(name, path))

    def result(self, summary: Mapping[str, Any], checkpoint: Path) -> None:
        """Send final values, a table of the test tasks and, if asked for, the checkpoint."""
        values = final_values(self._directory, summary)
        self._put_kept(lambda: self._run.summary.update(values))
        self._put_kept(self._send_table)
        if self._upload:
            self._put_kept(lambda: self._send_checkpoint(checkpoint, values))

    def finish(self, exit_code: int) -> None:
        """Upload the rest, and log where the run is stored if it is not at W&B. A second call does nothing."""
        if self._thread is None:
            return
        self._put(lambda: self._close(exit_code))
        thread, self._thread = self._thread, None
        self._queue.put(None)
        self._ending.set()
        began = time.monotonic()
        thread.join(max(GRACE, 0.3 * self._timeout))
        if thread.is_alive() and self._starting:
            kill_helper()  # aborts the start, and the worker continues offline
        thread.join(max(0.0, began + self._timeout - time.monotonic()))
        if thread.is_alive():
            if not self._failed:
                kill_helper()
            thread.join(FALLBACK)
        if thread.is_alive():
            log.warning("W&B: abandoned after %.3g s; metrics.jsonl has every row", time.monotonic() - began)
            self._say_where()
            self._left = self._failed = True
            forget_helper()
            thread.join(1.0)  # its wait has ended

    def _put(self, action: Action) -> None:
        if self._thread is not None:
            self._queue.put(action)

    def _put_kept(self, send: Action) -> None:
        def action() -> None:
            if send not in self._kept:
                self._kept.append(send)
            send()

        self._put(action)

    # The methods below run on the worker thread.

    def _work(self, mode: str | None) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._guard(lambda: self._start(choose_mode(mode)), self._reopen)
        while (action := self._queue.get()) is not None:
            if self._run is not None:
                self._guard(action, partial(self._again, action))

    def _guard(self, action: Action, otherwise: Action) -> None:
        """Run ``action``. On W&B's first failure run ``otherwise`` offline; on the second, give W&B up."""
        try:
            action()
        except Exception as error:
            if not self._failed:
                self._failed = True
                log.warning("W&B: %s; continuing offline", reason(error))
                forget_helper()  # it may be stuck or wait for a server; the copy gets a new one
                self._guard(otherwise, otherwise)
            else:
                self._run = None
                if not self._left:
                    log.warning("W&B: %s; turned off, metrics.jsonl has every row", reason(error))
                forget_helper()  # the next run of this process gets a new one

    def _again(self, action: Action) -> None:
        self._reopen()
        action()

    def _reopen(self) -> None:
        """Restart the run offline."""
        self._begin("offline")

    def _start(self, mode: str) -> None:
        """Start the run, offline if ``mode`` is online but the server does not answer."""
        if mode == "online" and (silent := self._unanswered()):
            self._failed = True
            log.warning("W&B: %s; continuing offline", silent)
            mode = "offline"
        self._begin(mode)

    def _unanswered(self) -> str | None:
        """Return why the server does not answer: it cannot be reached, or is silent until the timeout or the end of
        the run.
        """
        import wandb

        probe = Probe(wandb.setup().settings)
        patience = float(self._settings["init_timeout"])
        if not probe.wait(patience, self._ending):
            return f"{probe.url} does not answer"
        return probe.failure

    def _begin(self, mode: str) -> None:
        import wandb

        online = mode == "online"
        identity = Identity.of(self._directory)
        if not online and identity.uploaded():
            identity = Identity(self._directory)
        replaced = identity.offline_files()
        identity.save()
        self._starting = online
        try:
            self._run = wandb.init(
                **self._arguments,
                id=identity.run_id,
                mode="online" if online else "offline",
                resume="allow" if online else None,
                settings=wandb.Settings(**self._settings),
            )
        finally:
            self._starting = False
        self._online = online
        if online:
            identity.online = True
            identity.save()
            log.info("W&B: %s", self._run.url)
        for old in replaced:
            old.rename(old.with_name(f"replaced-{old.name}"))
        self._run.define_metric("*", step_metric="iteration")
        self._held = self._run.starting_step
        for step, row in numbered(self._directory):
            if self._held <= step <= self._reached:
                self._run.log(row, step=step, commit=True)
        for send in self._kept:
            send()

    def _send_row(self, step: int, row: dict[str, Any]) -> None:
        if step >= self._held:
            self._run.log(row, step=step, commit=True)
        self._reached = step

    def _send_image(self, name: str, path: Path) -> None:
        try:
            picture = image(path)
        except Exception as error:  # a bad file does not count as a failure of W&B
            log.warning("W&B: image %s left out: %s", path, reason(error))
        else:
            self._send_media(name, picture)

    def _send_media(self, name: str, media: Any) -> None:
        step = max(self._reached + 1, self._reached // 10 * 10 + 9)
        if step >= self._held:
            self._run.log({name: media}, step=step, commit=False)

    def _send_table(self) -> None:
        if (table := test_table(self._directory)) is not None:
            self._send_media("test/tasks", table)

    def _send_checkpoint(self, path: Path, metadata: dict[str, Any]) -> None:
        self._run.log_artifact(model_artifact(f"{self._arguments['name']}-{self._run.id}", path, metadata))

    def _close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)
        if not self._online:
            self._say_where()
        elif refused(Path(self._run.settings.log_internal)):
            raise ConnectionError("the server refused the rows")

    def _say_where(self) -> None:
        if self._run is not None:
            option = "--include-online " if self._online else ""
            place = shlex.quote(self._run.settings.sync_dir)
            log.info("W&B: not uploaded; to upload: wandb sync %s%s", option, place)


def start(run: TrackedRun, tracker: Tracker) -> WandbSink:
    """Start or continue the W&B run of a run."""
    return WandbSink.start(
        run.directory,
        mode=tracker.wandb,
        project=tracker.project,
        entity=tracker.entity,
        group=tracker.group or run.group,
        tags=[*tracker.tags, *(run.choices[group] for group in NAMED if group in run.choices)],
        name=run.name,
        notes=tracker.notes,
        job_type="train",
        config={**run.config, "choices": dict(run.choices), "protocol": dict(run.protocol)},
        init_timeout=tracker.init_timeout,
        finish_timeout=tracker.finish_timeout,
        checkpoint=tracker.checkpoint,
    )


def missing(run: TrackedRun, tracker: Tracker) -> bool:
    """Return whether W&B was never given the run online, and there is no offline file to upload."""
    if requested_mode(tracker.wandb, os.environ) == "disabled":
        return False
    identity = Identity.of(run.directory)
    return not identity.online and not identity.offline_files()
