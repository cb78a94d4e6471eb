"""Benchmarks on real models, with the peer in the same run. `make bench` runs them all; each also runs alone."""
