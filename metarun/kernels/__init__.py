"""Exact and fast operations on many tasks at once, for networks whose parameters differ from task to task."""
