"""Writes quantized weights and activations into a graph, in the forms that dialects ask for."""
