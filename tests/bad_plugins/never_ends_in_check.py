"""Never ends in check; makes the file that the environment names as NEVER_ENDING when it is there."""

import os
import time
from pathlib import Path

from edgesmith import Guarantee, Kind, Method, MethodRecord, hookimpl


@hookimpl
def register_methods():
    return [
        MethodRecord(
            name="never-ends-in-check",
            version="1.0",
            summary="Never ends in check.",
            entry="never_ends_in_check:Broken",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]


class Broken(Method):
    def check(self, model, context):
        Path(os.environ.get("NEVER_ENDING", os.devnull)).touch()
        time.sleep(1e6)

    def apply(self, model, context):
        return model.clone()
