"""The mean of a logged metric over each fifth of a run: whether it was still learning when it ended.

    python scripts/fifths.py outputs/anil-cifar_fs_first_order_5way_1shot/*_s0

The metric is one that meta-training logs every ``runner.log_every`` iterations.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from metarun.errors import UserError
from metarun.tracking.rundir import RunDirectory

PARTS = 5


def main() -> None:
    """Print the mean of a metric in each of five equal parts of meta-training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--metric", default="train/accuracy")
    words = parser.parse_args()
    rows = RunDirectory.open(words.run).rows()
    values = [(row["iteration"], row[words.metric]) for row in rows if words.metric in row]
    if len(values) < PARTS:
        raise UserError(f"{words.run} logs {words.metric} {len(values)} times; {PARTS} are needed")
    length = values[-1][0] / PARTS
    parts = [[v for i, v in values if part * length < i <= (part + 1) * length] for part in range(PARTS)]
    print(f"{words.metric} to iteration {values[-1][0]}: {', '.join(f'{fmean(part):.4f}' for part in parts)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"fifths: {error}")
