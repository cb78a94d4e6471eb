"""Sparse weights: which go, and what the others become. Pure functions, apart from `run`, `trained` and `report`."""
