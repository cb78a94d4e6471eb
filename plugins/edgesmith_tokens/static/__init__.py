"""Attention by a constant matrix: which layers take it, which matrix, and how it is written into the graph."""
