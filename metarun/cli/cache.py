"""``metarun cache [clear [--older-than DAYS]]``: list or delete what is cached."""

from __future__ import annotations

import time
from collections.abc import Sequence

from metarun.cli.arguments import Arguments
from metarun.errors import nearest, require, shortened
from metarun.tasks.cache import Entry, cache_root, entries, remove, shown_size


def run(arguments: Arguments) -> int:
    """Run the command."""
    clear, days = read(arguments)
    found = entries()
    if not clear:
        print_table(found)
        return 0
    old = [entry for entry in found if time.time() - entry.used >= 86400 * days]
    freed = remove(old)
    print(f"cleared {len(old)} of {len(found)} entries, {shown_size(freed)}, from {cache_root()}")
    return 0


def read(arguments: Arguments) -> tuple[bool, float]:
    """Return whether to clear, and the number of days for which an entry must have been unused."""
    usage = "metarun cache [clear [--older-than DAYS]]"
    for word in (*arguments.names, *arguments.overrides):
        require(word == "clear", f"unknown word '{shortened(word)}'{nearest(word, ['clear'])}   {usage}")
    days = arguments["--older-than"]
    require(days is None or bool(arguments.names), f"--older-than goes with clear   {usage}")
    return bool(arguments.names), days or 0.0


def print_table(found: Sequence[Entry]) -> None:
    """Print a line for each entry of a megabyte or more, and one for all smaller entries of a kind."""
    rows: dict[str, list[Entry]] = {}
    for entry in found:
        key = entry.what if entry.size >= 1_000_000 else entry.what.partition(":")[0] + ": small ones"
        rows.setdefault(key, []).append(entry)
    total = sum(entry.size for entry in found)
    print(f"{cache_root()}: {shown_size(total)} in {len(found)} entries")
    for what, group in sorted(rows.items(), key=lambda row: -sum(entry.size for entry in row[1])):
        size, used = sum(entry.size for entry in group), max(entry.used for entry in group)
        count = f" ({len(group)})" if len(group) > 1 else ""
        print(f"{shown_size(size):>8}  last used {time.strftime('%Y-%m-%d', time.localtime(used))}  {what}{count}")
    if found:
        print("metarun cache clear [--older-than DAYS] deletes it; everything is built or downloaded again when needed")
