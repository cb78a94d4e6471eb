"""Forgets to return its records."""

from edgesmith import hookimpl


@hookimpl
def register_methods():
    pass
