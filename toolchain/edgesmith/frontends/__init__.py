"""Frontends: readers that turn a source into a Model, cleaned and proven equal to it."""
