"""Devices: how to reach one, what it is, and what an artifact really does there."""
