"""A meta-trained learner applied to a task of the user's own: three lines load what ``metarun adapt`` saved.

from metarun.adapted import load
learner = load("outputs/glyphs-protonet/.../adapted/...")
learner.predict(["a.png", "b.png"]).labels
"""

from metarun.adapted.learner import AdaptedLearner, Predictions, load

__all__ = ["AdaptedLearner", "Predictions", "load"]
