"""Networks: plain torch modules that any algorithm with a matching role can drive.

``roles`` says what a model of each role must offer. The other modules hold one network each, or the layers that several
share.
"""
