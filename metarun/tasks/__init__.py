"""Task families, which return batches of tasks by index. They import no algorithm.

``base`` is the base class, ``episode`` has the data types, ``fewshot`` draws episodes from any labelled examples, and
``rng`` draws numbers that depend on seed, split and index alone. The families stand in one package for each kind of
data.
"""
