"""Meta-learning algorithms: one package for each kind, and the base classes.

``base`` states the contract of every algorithm, ``supervised`` that of algorithms with support and query sets. An
algorithm holds its model, knows task families only through their data types, and imports nothing of engine, training
or configuration.
"""
