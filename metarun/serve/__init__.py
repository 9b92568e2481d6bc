"""A local web page that classifies what is dropped on it by a saved learner: ``server``, and the page's own files.

The server is that of the standard library. One page and one request need no framework, and what matters here is a line
in the handler where frameworks read the body first: to refuse an upload by its header.
"""
