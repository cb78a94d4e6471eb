"""What makes up for removed channels without training."""
