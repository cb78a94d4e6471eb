"""What is trained and compared, found in the graphs."""
