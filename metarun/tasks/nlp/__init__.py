"""Task families of text: classification of short texts, and formal languages.

``base`` holds what text families share; a model encodes the texts.
"""
