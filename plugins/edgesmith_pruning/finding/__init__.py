"""What can be removed from a graph."""
