"""Comparison of finished runs: tables, curves, paired differences, and a page that shows them.

``runs`` reads run directories; ``reproductions`` compares results with those of papers.
"""
