"""Registers a method of a kind that does not exist."""

from edgesmith import Guarantee, MethodRecord, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="unknown-kind",
            version="1.0",
            summary="Is of an unknown kind.",
            entry="unknown_kind:Method",
            kind="fold-it",
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]
