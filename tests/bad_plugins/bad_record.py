"""Registers a method whose name no recipe could hold."""

from edgesmith import Guarantee, Kind, MethodRecord, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="Bad Name!",
            version="1.0",
            summary="Has a malformed name.",
            entry="bad_record:Method",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.EXACT,
        )
    ]
