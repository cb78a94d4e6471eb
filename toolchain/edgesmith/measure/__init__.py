"""Measurement: latency, peak memory, accuracy, output error and size, each with its spread and conditions.

This file imports nothing, so that the memory child (`edgesmith.measure.child`) stays as small as what it measures.
"""
