"""TensorBoard as a copy of ``metrics.jsonl``: one event file in the run's folder ``tensorboard/``.

Every start writes the file anew from metrics.jsonl, so that it holds each row exactly once, whatever a kill left. An
event holds one row: a scalar for each column, at the row's iteration. TensorFlow is neither needed nor imported.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from metarun.tracking.rundir import RunDirectory
from metarun.tracking.settings import Tracker
from metarun.tracking.sinks import Row, TrackedRun

log = logging.getLogger("metarun")

EVENTS = "tensorboard/events.out.tfevents.*"
"""The event files of a run directory."""


class TensorBoardSink:
    """The event file of one run.

    Args:
        directory: The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._iteration = 0  # of the last row
        self._off = False
        self._guard(self._begin)
        for row in RunDirectory(directory).rows():
            self.log(row)

    def log(self, row: Row) -> None:
        self._iteration = int(row.get("iteration", self._iteration))
        values = [{"tag": name, "simple_value": value} for name, value in row.items() if name != "iteration"]
        self._guard(lambda: self._write(summary={"value": values}))

    def image(self, name: str, path: Path) -> None:
        def send() -> None:
            with Image.open(path) as picture:
                width, height = picture.size
            image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": path.read_bytes()}
            self._write(summary={"value": [{"tag": name, "image": image}]})

        self._guard(send)

    def result(self, summary: Mapping[str, Any], checkpoint: Path) -> None:
        """Do nothing: the test result is a row."""

    def finish(self, exit_code: int) -> None:
        self._guard(lambda: self._file.close())
        self._off = True

    def _begin(self) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        for old in self._directory.glob(EVENTS):
            old.unlink()
        path = self._directory / EVENTS.replace("*", f"{time.time():.6f}.{socket.gethostname()}")
        path.parent.mkdir(exist_ok=True)
        self._file = path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

    def _write(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=self._iteration, **content)
        self._records.write(event.SerializeToString())
        self._file.flush()

    def _guard(self, action: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            action()
        except Exception as error:
            self._off = True
            log.warning("TensorBoard: %s; turned off, metrics.jsonl has every row", error)


def start(run: TrackedRun, tracker: Tracker) -> TensorBoardSink:
    """Write the event file of a run's rows so far."""
    return TensorBoardSink(run.directory)


def missing(run: TrackedRun, tracker: Tracker) -> bool:
    """Return whether the run has no event file."""
    return not any(run.directory.glob(EVENTS))
