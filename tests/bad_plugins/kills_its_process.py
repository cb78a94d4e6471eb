"""Kills its process."""

import os
import signal

from edgesmith import Guarantee, Kind, Method, MethodRecord, Verdict, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="kills-its-process",
            version="1.0",
            summary="Kills its process.",
            entry="kills_its_process:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        return Verdict.ok()

    def apply(self, model, context):
        os.kill(os.getpid(), signal.SIGKILL)
