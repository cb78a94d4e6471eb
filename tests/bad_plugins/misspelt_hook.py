"""Implements a hook that does not exist."""

from edgesmith import hookimpl


@hookimpl
def register_method():
    return []
