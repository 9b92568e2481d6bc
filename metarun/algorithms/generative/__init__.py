"""Learners that generate new examples of classes they are shown a few examples of.

``base`` says how such tasks are labelled, ``flow`` learns by flow matching, ``copies`` is the baseline without
learning.
"""
