"""Aborts in check."""

import os

from edgesmith import Guarantee, Kind, Method, MethodRecord, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="aborts-in-check",
            version="1.0",
            summary="Aborts in check.",
            entry="aborts_in_check:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        os.abort()

    def apply(self, model, context):
        return model.clone()
