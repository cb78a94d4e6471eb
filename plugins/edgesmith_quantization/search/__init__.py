"""The search for a format per layer: what was tried, how sensitive layers are, what is cheapest."""
