"""Make the pictures of ``outputs/gallery``, each from the runs of commands that are stated here and in the manual.

    python scripts/gallery.py navigation field            # train, then copy the picture
    python scripts/gallery.py navigation=outputs/RUN      # from a run that is there (several: a comma between)

The picture of one run is the one that the run drew: what its task family shows of the tested learner, or its film. The
picture of several runs is the learning curve of their report.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import metarun
from metarun import style
from metarun.reports.comparison import compare
from metarun.reports.curves import figures
from metarun.reports.runs import gather

GALLERY = Path(__file__).parents[1] / "outputs" / "gallery"
PICTURES = {
    "glyphs.png": ["task=vision/glyphs algorithm=protonet runner.iterations=60"],
    "sinusoid.png": ["experiment=maml/sinusoid"],
    "navigation.png": ["task=rl/navigation"],
    "field.png": ["experiment=field/glyphs runner.iterations=250 runner.test_episodes=100"],
    "completion.png": ["experiment=completion/omniglot"],
    "completion_convcnp.png": ["experiment=completion/omniglot_convcnp"],
    "generation.png": ["experiment=flow/omniglot"],
    "half_cheetah.png": [
        "experiment=maml/half_cheetah_dir runner.iterations=100",
        "experiment=promp/half_cheetah_dir runner.iterations=100",
        "experiment=pretrain/half_cheetah_dir runner.iterations=100",
    ],
    "minigrid.gif": ["experiment=rl2/minigrid"],
}
"""The commands of each picture, without ``metarun``."""


def train(command: str) -> Path:
    """Run a command of :data:`PICTURES`; return the run directory."""
    return Path(metarun.experiment(*command.split()).run().path)


def draw(file: str, runs: Sequence[Path]) -> Path:
    """Make a picture of the gallery from its runs; return its path."""
    path = GALLERY / file
    if len(runs) == 1:
        drawn = "film.gif" if path.suffix == ".gif" else "what_was_learned.png"
        return Path(shutil.copyfile(runs[0] / "plots" / drawn, path))
    with style.applied():
        for name, _, figure in figures(compare(*gather([str(run) for run in runs]))):
            if name.startswith("learning"):
                style.save(figure, path)
                return path
    raise AssertionError(f"no learning curve of {runs}")


if __name__ == "__main__":
    files = {Path(file).stem: file for file in PICTURES}
    for word in sys.argv[1:]:
        name, _, given = word.partition("=")
        runs = [Path(run) for run in given.split(",")] if given else [train(each) for each in PICTURES[files[name]]]
        print(draw(files[name], runs))
