"""Benchmarks of the outer step, side by side with other libraries.

``compare`` measures time, memory and the error of the gradient on the ``workloads``, ``peers`` holds the other
libraries, and ``end_to_end`` times whole runs.
"""
