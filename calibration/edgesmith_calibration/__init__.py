"""Calibration data, streaming statistics and range estimation: the lowest floor of Edgesmith.

This package knows nothing of graphs, methods or targets. It turns files into batches (`sources`), batches into
small statistics (`observers`), statistics into ranges (`ranges`), and outputs into scores (`metrics`).
Importing it is cheap; each submodule imports numpy on first use.
"""
