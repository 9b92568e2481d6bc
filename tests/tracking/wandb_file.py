"""Reads the ``.wandb`` files of offline runs: records of W&B's protocol buffers in a LevelDB log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32768


@dataclass
class OfflineRun:
    run_id: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    artifacts: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def payloads(raw: bytes) -> Iterator[bytes]:
    """The log's records; a torn tail ends the file."""
    position, parts = 7, b""  # after W&B's own 7-byte header
    while position + 7 <= len(raw):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", raw, position)
        position += 7
        if position + length > len(raw):
            return
        parts += raw[position : position + length]
        position += length
        if kind in (1, 4):  # a full record, or the last part of one
            yield parts
            parts = b""


def read(file: Path) -> OfflineRun:
    """The run in ``file``, which may still be open for writing."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = OfflineRun()
    for payload in payloads(file.read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run_id, run.group, run.job_type = record.run.run_id, record.run.run_group, record.run.job_type
            run.tags, run.notes = list(record.run.tags), record.run.notes
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            run.history.append(values(record.history.item))
        elif kind == "summary":
            run.summary |= values(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append(record.artifact.type)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def values(items: Any) -> dict[str, Any]:
    """W&B's key-value items as one dict, nested keys joined with dots."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def is_media(row: dict[str, Any]) -> bool:
    """True for a history row that W&B added for an image, a film or a table."""
    return any(key.endswith("._type") for key in row)
