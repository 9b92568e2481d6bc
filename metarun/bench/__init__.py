"""Benchmarks of metarun's outer step against other libraries: time, memory and error of the gradient."""
