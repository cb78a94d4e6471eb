"""What may be removed or shared, found in the graph."""
