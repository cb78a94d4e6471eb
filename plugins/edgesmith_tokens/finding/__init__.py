"""Vision transformers and their tokens, found in the graph."""
