"""Options of the family, as pydantic models."""
