"""How much is removed where."""
