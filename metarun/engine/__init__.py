"""Computes the outer steps of an algorithm: all tasks at once or in parts, eagerly or from a recording.

``step`` takes the steps, ``capture`` and ``graph`` record and simplify them, ``tuning`` finds the fastest exact plan,
and ``precision`` sets the number format of a run. Algorithms import nothing from here.
"""
