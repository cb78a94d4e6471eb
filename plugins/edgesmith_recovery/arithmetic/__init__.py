"""The formulas, apart from any graph."""
