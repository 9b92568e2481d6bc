"""Learners that compare embeddings: an embedding with a head that reads the embedded support set.

``learner`` trains and evaluates any head, ``head`` is their base class; the other modules hold the heads.
"""
