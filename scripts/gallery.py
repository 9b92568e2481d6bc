"""Draw pictures of the gallery again, in the present style, from runs that are there.

    python scripts/gallery.py glyphs=outputs/glyphs-protonet/RUN sinusoid=outputs/maml-sinusoid/RUN

Each picture is what its task family draws of the learner that the run tests (``plots/what_was_learned.png``), under the
run's name and protocol.
"""

from __future__ import annotations

import sys
from pathlib import Path

import metarun
from metarun import style
from metarun.config.build import build
from metarun.config.trust import Trust
from metarun.runs.stored import reread
from metarun.tracking.plots import heading

GALLERY = Path(__file__).parents[1] / "outputs" / "gallery"


def draw(name: str, run: str) -> Path:
    """Draw the picture ``name`` of the gallery from a run directory; return its path."""
    directory, config, facts, _ = reread("load", [run], (), Trust())
    task = build(config, facts).task
    with style.applied():
        figure = task.picture(metarun.load(run).learner.algorithm)
        assert figure is not None, f"the task family of {run} draws no picture"
        style.entitle(figure, *heading(directory, directory.summary() or {}))
        path = GALLERY / f"{name}.png"
        figure.savefig(path)
    return path


if __name__ == "__main__":
    for word in sys.argv[1:]:
        print(draw(*word.split("=", 1)))
