"""A process that imports: `python -m edgesmith.isolation.import_child SOCKET FOLDER`. Says what it lived through."""

import faulthandler
import importlib
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesmith.host.origin import PluginOrigin
from edgesmith.host.plugin import Plugin
from edgesmith.isolation.folder import REQUEST_FILE, STACK_FILE
from edgesmith.isolation.guard import end_with_the_run


@dataclass(frozen=True, slots=True)
class Import:
    """One import to try."""

    origin: PluginOrigin
    module: str = ""
    """A module of the plugin that one of its records names; empty for the plugin itself, with its hooks."""


def main(descriptor: int, folder: Path) -> None:
    """Try the imports that are requested in `folder`, and tell before and after each over the socket `descriptor`."""
    end_with_the_run(descriptor)
    request = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
    sys.path[:] = request["import_path"]
    with (folder / STACK_FILE).open("w") as stack, socket.socket(fileno=descriptor) as end:
        faulthandler.enable(stack, all_threads=False)
        for one in request["imports"]:
            end.sendall(b"{}\n")
            answer = _try(Import(PluginOrigin(**one["origin"]), one["module"]))
            end.sendall(json.dumps(answer).encode() + b"\n")
    # A plugin's own exit handlers are not asked for.
    os._exit(0)


def _try(wanted: Import) -> dict[str, Any]:
    """Return the names of the records of a plugin that loads, and a fault that the host could not contain."""
    loaded: object = None
    try:
        if wanted.module:
            importlib.import_module(wanted.module)
        else:
            loaded = wanted.origin.candidate().load()
    except KeyboardInterrupt:
        # Nobody interrupts this process.
        return {"names": None, "fault": "raised KeyboardInterrupt"}
    except BaseException:  # noqa: BLE001  any other is contained, and shown where the host imports it itself
        pass
    names = [record.name for record in loaded.records] if isinstance(loaded, Plugin) else None
    return {"names": names, "fault": ""}


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
