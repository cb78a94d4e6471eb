"""Never ends in apply; makes the file that the environment names as NEVER_ENDING when it is there."""

import os
from pathlib import Path

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="never-ends",
            version="1.0",
            summary="Never ends in apply.",
            entry="never_ends:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        Path(os.environ.get("NEVER_ENDING", os.devnull)).touch()
        while True:
            pass
