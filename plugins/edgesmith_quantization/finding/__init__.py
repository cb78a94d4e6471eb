"""Finds what can be quantized in a graph, and says why the rest cannot."""
