"""How a process ended, in words."""

import signal


def manner(code: int, work: str) -> str:
    """Return how a process with this return code, negative for a signal, ended before its `work` was done."""
    if code >= 0:
        return f"ended its process with code {code} before {work} was done"
    name = next((one.name for one in signal.Signals if one == -code), f"signal {-code}")
    hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"
