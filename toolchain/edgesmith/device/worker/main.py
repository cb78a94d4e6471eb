"""The command line of the worker."""

import json
import os
import signal
import sys
from pathlib import Path

from .archive import Facts
from .machine import probe
from .running import run
from .timing import time_in_turns

WORK = {"run": run, "time": time_in_turns}


def main() -> int:
    """Do what the command line says and write the answer as a whole."""
    task, path = sys.argv[1], Path(sys.argv[2]).resolve()
    if task == "probe":
        _answer(path, {"status": "done", **probe()})
        return 0
    request = json.loads(path.read_text(encoding="utf-8"))
    (path.parent / "worker.pid").write_text(str(os.getpid()), encoding="ascii")
    # Ends this process also when nobody is left to do so.
    signal.alarm(request["deadline_seconds"])
    try:
        found = {"status": "done", **WORK[task](request, path.parent)}
    except Exception as error:  # noqa: BLE001  whatever a runtime raises is told to the machine that asked
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:4000]}
    _answer(path.parent / "answer.json", found)
    return 0 if found["status"] == "done" else 1


def _answer(path: Path, found: Facts) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)
