"""Returns dictionaries where records belong."""

from edgesmith import hookimpl


@hookimpl
def register_methods():
    return [{"name": "a-dictionary"}]
