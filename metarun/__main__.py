"""``python -m metarun``."""

from metarun.cli import console

console()
