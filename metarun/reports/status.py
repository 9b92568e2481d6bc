"""Statuses of recipes. This module imports nothing heavy, so that help can print them."""

from __future__ import annotations

from typing import Literal, get_args

Status = Literal[
    "passed", "consistent", "inconclusive", "recalled", "missed", "short", "no-value",
    "stale", "uncommitted", "altered", "untraced", "not-run",
]  # fmt: skip
"""Status of a recipe.

``passed``: all published numbers are reached. ``consistent``: reached, with too few seeds to pass.
``inconclusive``: within the interval over seeds, but none of them reached the value. ``recalled``:
reached, but none of the published numbers was read in a source. ``missed``: some number is not reached. ``short``:
missed with fewer iterations than the paper's. ``no-value``: the paper has curves only. ``stale``, ``uncommitted``,
``altered`` and ``untraced``: the record does not count. ``not-run``: there is no record.
"""
STATUSES: tuple[str, ...] = get_args(Status)
