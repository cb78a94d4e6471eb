"""Sparse weights: which to remove, and what the others become. Pure functions, apart from `layers` and `passes`."""
