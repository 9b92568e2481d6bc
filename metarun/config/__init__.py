"""From words and YAML files to checked objects. Only this package and the command line know Hydra.

``compose`` makes a configuration, ``schema`` reads what a class declares from its source, ``check`` compares the two,
and ``build`` constructs the objects. ``trust`` decides which code a stored configuration may call.
"""
