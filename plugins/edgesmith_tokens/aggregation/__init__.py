"""Aggregation of tokens: groups of places, matrices that average them, statistics, and what is trained."""
