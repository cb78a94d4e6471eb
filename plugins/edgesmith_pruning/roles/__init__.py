"""Roles of units: which serve an attribute, which general utility, which both or neither."""
