"""Asks for an argument that the hook does not have."""

from edgesmith import hookimpl


@hookimpl
def register_methods(registry):
    return []
