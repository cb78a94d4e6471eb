"""What each atom is worth: pure functions of weights and statistics."""
