"""The memory child: loads one model, runs it, reports its own resident memory. Run with `python -m`.

Reads one JSON request from standard input and writes one JSON reply to standard output. Imports numpy and
onnxruntime only, so that the baseline is that of the smallest program that can run a model.
"""

import json
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")


def main() -> None:
    """Serve one request."""
    request = json.load(sys.stdin)
    import numpy as np
    import onnxruntime

    baseline = peak_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    # Spinning threads change no byte of memory and would slow down whatever else is being measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with np.load(request["inputs"], allow_pickle=False) as archive:
        arrays = {name: archive[f"arr_{position}"] for position, name in enumerate(request["names"])}
    session = onnxruntime.InferenceSession(request["model"], options, providers=[request["provider"]])
    feed = {entry.name: arrays[entry.name] for entry in session.get_inputs()}
    for _ in range(request["runs"]):
        session.run(None, feed)
    reply: dict[str, Any] = {
        "baseline_bytes": baseline,
        "resident_bytes": resident_bytes(),
        "peak_bytes": peak_bytes(),
        "modules": sorted({name.partition(".")[0] for name in sys.modules}),
    }
    sys.stdout.write(json.dumps(reply))


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far.

    On Linux from VmHWM: `ru_maxrss` survives exec there, so a child of a large parent would report the parent.
    """
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    import resource

    # macOS counts bytes; the other systems with getrusage count KiB.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes() -> int:
    """Return the resident memory of this process now; the peak where the system does not tell."""
    return _status_bytes("VmRSS") if _STATUS.exists() else peak_bytes()


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main()
