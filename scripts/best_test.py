"""The best of several tests of one learner beside the mean of all: what selecting on the test classes adds.

    python scripts/best_test.py outputs/protonet-omniglot_lake_1shot/*_s0 --tests 40 --episodes 100

The tests are the first of the run's own test episodes, taken in groups.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metarun.errors import UserError
from metarun.tracking.rundir import RunDirectory


def main() -> None:
    """Print each metric of a run after its last step: the mean of all episodes, the lowest and the highest test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--tests", type=int, default=40)
    parser.add_argument("--episodes", type=int, default=100, help="episodes of a test")
    words = parser.parse_args()
    needed = words.tests * words.episodes
    results = RunDirectory.open(words.run).episodes()
    if not results:
        raise UserError(f"{words.run} has no test results")
    for name, steps in results.items():
        values = steps[:, -1]
        if len(values) < needed:
            raise UserError(f"{words.run} has {len(values)} test episodes; {needed} are needed")
        tests = values[:needed].reshape(words.tests, -1).mean(1)
        print(f"{name}: {values.mean():.5f}   tests: lowest {tests.min():.5f}, highest {tests.max():.5f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"best_test: {error}")
