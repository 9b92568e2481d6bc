"""Task families of functions from vectors to numbers, all generated.

Sinusoids, samples of Gaussian processes, functions for in-context learning, and quadratics to be minimised.
"""
