"""Repair block by block, without the memory of the whole network."""
