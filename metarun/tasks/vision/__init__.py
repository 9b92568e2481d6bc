"""Task families of images: few-shot classification, completion, fields and generation.

``base`` augments images and draws episodes, ``collection`` collects images from folders and archives, ``folder`` is the
family for the user's own images.
"""
