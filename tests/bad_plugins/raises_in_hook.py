"""Raises while it registers."""

from edgesmith import hookimpl


@hookimpl
def register_methods():
    raise RuntimeError("no licence found")
