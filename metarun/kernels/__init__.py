"""Operations that run a network on many tasks at once when each task has its own parameters.

All of them are differentiable to any order. :mod:`~metarun.kernels.mode` puts them in place of torch's operations.
"""
