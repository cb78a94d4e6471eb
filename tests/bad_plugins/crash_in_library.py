"""Crashes in a library that it calls."""

import numpy as np

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="crash-in-library",
            version="1.0",
            summary="Crashes in a library that it calls.",
            entry="crash_in_library:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        np.linalg.inv(np.zeros((3, 3)))
        return model.clone()
