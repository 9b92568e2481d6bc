"""What learns over tasks: one package for each kind of algorithm, and the base classes.

``base`` states what any algorithm does, ``supervised`` what one with support and query sets does. An algorithm holds
its model, knows task families only through their data types, and imports nothing of engine, training or configuration.
"""
