"""A fake device: it answers as the worker would, with made-up times, and measures nothing.

It is started in place of the device's interpreter with a file as its first word: what it answers to the probe, the
`state` that it is in while it times, and how many times faster than the others the last model is (`speedup`). Where
told to, it does not run the last model (`last_fails`), breaks off (`crashes`), or is killed while it times
(`is_killed`).
"""

import json
import os
import signal
import sys
from pathlib import Path

ROUNDS = 5


def main() -> int:
    device, task, path = json.loads(Path(sys.argv[1]).read_text()), sys.argv[3], Path(sys.argv[4])
    if task == "probe":
        path.write_text(json.dumps(device["probe"]))
        return 0
    if device.get("crashes"):
        sys.exit("made-up crash")
    if device.get("is_killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    models = list(json.loads(path.read_text())["models"])
    times = dict.fromkeys(models, [1.0] * ROUNDS) | {models[-1]: [1.0 / device["speedup"]] * ROUNDS}
    failures = {models[-1]: "RuntimeError: made up"} if device.get("last_fails") else {}
    times = {model: its for model, its in times.items() if model not in failures}
    answer = {
        "failures": failures,
        "status": "done",
        "runs": times,
        "rounds": times,
        "before": device["state"],
        "after": device["state"],
        "cooling_seconds": 0.0,
        "runtime": "onnxruntime 0.0-fake",
        "provider": "CPUExecutionProvider",
        "optimization": "all",
    }
    (path.parent / "answer.json").write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
