"""A learner adapted to the user's own task: ``learner`` adapts and predicts, ``sources`` reads the user's files.

Three lines load what ``metarun adapt`` saved:

from metarun.adapted import load
learner = load("outputs/glyphs-protonet/.../adapted/...")
learner.predict(["a.png", "b.png"]).labels
"""

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import Predictions
from metarun.adapted.stored import load

__all__ = ["AdaptedLearner", "Predictions", "load"]
