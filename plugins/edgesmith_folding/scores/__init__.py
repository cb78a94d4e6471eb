"""What a block is worth, as short functions that can be held against their papers."""
