"""What is learned: task families, which hand out batches of tasks by number. They import no algorithm.

``base`` is the base class, ``episode`` has the data types, ``fewshot`` draws episodes from any labelled examples, and
``rng`` draws numbers that depend on seed, split and index alone. The families stand in one package for each kind of
data.
"""
