"""Runs a graph block by block, so that leaving blocks out costs no new graph."""
