"""A device without Python, or without numpy: a shell says what it is, and runs programs there."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgesmith.device import faults
from edgesmith.device.facts import Module, Probe, State
from edgesmith.device.transport import COMMAND_SECONDS, Finished, Transport, Workspace
from edgesmith.device.worker.machine import CLOCKS_FILE, MODULES, SECONDS_TO_COOL

SCRIPT = Path(__file__).with_suffix(".sh")
_PROBE_SECONDS = 300.0
_SECTION = re.compile(r"^== (\w+)\n", re.MULTILINE)


def probe_by_shell(place: Workspace) -> Probe:
    """Return what a device without Python is. Copies the script there.

    Raises:
        DeviceError: It has no POSIX shell, or its tools answer what nobody understands.
    """
    place.push(SCRIPT, SCRIPT.name)
    texts = _ask(place, "probe", _PROBE_SECONDS)
    known = {name: text for name, text in texts.items() if name in Probe.model_fields and text}
    missing = Module(version="", reason="there is no Python")
    empty = dict.fromkeys((name for name, each in Probe.model_fields.items() if each.annotation is str), "")
    facts = {"usable_cores": 1, "cuda_runtime": False, "modules": dict.fromkeys(MODULES, missing)}
    try:
        return Probe.model_validate({**empty, **facts, **known, "state": _read_state(texts), "status": "done"})
    except (ValueError, LookupError) as error:
        raise faults.failed(place.transport.address, "the probe", " ".join(str(error).split())[:300]) from error


def state(place: Workspace) -> State:
    """Return what changes from minute to minute. The script must be there.

    Raises:
        DeviceError: The device's tools answer what nobody understands.
    """
    return _read_state(_ask(place, "state"))


def cool_down(place: Workspace, limit_celsius: float) -> float:
    """Wait until every zone is below the limit, if there is one; return the seconds that it took."""
    started = time.monotonic()
    while limit_celsius and (state(place).hottest_celsius or 0.0) > limit_celsius:
        if time.monotonic() - started > SECONDS_TO_COOL:
            raise RuntimeError(f"the device did not cool below {limit_celsius} C in {SECONDS_TO_COOL} s")
        time.sleep(2)
    return time.monotonic() - started if limit_celsius else 0.0


@contextmanager
def locked_clocks(place: Workspace, *, wanted: bool) -> Iterator[str]:
    """Lock the clocks while the block runs, if that is wanted; yield why it could not be done, or nothing."""
    if not wanted:
        yield ""
        return
    lock = ("lock", place.path(CLOCKS_FILE))
    done = call(place.transport, place.path(SCRIPT.name), *lock, timeout_seconds=COMMAND_SECONDS)
    yield "" if done.code == 0 else done.last_line or f"jetson_clocks ended with code {done.code}"
    place.restore_clocks()


def _ask(place: Workspace, what: str, timeout_seconds: float = COMMAND_SECONDS) -> dict[str, str]:
    """Return what the device's tools say, by name."""
    done = call(place.transport, place.path(SCRIPT.name), what, timeout_seconds=timeout_seconds)
    names_and_texts = _SECTION.split(done.stdout)[1:]
    if not names_and_texts:
        raise faults.failed(place.transport.address, "the probe", done.last_line or f"exit code {done.code}")
    return {name: text.strip() for name, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True)}


def call(transport: Transport, script: str, *words: str, timeout_seconds: float) -> Finished:
    """Run the script, which lies at the path `script` on the device; the words are explained in it."""
    return transport.run(["sh", script, *words], timeout_seconds=timeout_seconds)


def _read_state(texts: Mapping[str, str]) -> State:
    memory = dict(line.split(":", 1) for line in texts.get("memory", "").splitlines() if ":" in line)
    zones = (line.split(" ", 1) for line in texts.get("temperatures", "").splitlines())
    clocks = (line.split() for line in texts.get("clocks", "").splitlines())
    found = {
        "power_mode": texts.get("power_mode", ""),
        "clocks": [one for one in clocks if len(one) == 4 and "".join(one[1:]).isdigit()],
        "gpu_limits": texts.get("gpu_limits", ""),
        "temperatures_celsius": {name: int(degrees) / 1000 for degrees, name in zones if degrees.lstrip("-").isdigit()},
        "memory_kib": {name: int(memory[name].split()[0]) for name in ("MemTotal", "MemAvailable") if name in memory},
        "load_average": texts.get("load", "").split()[:3],
        "boot_id": texts.get("boot_id", ""),
    }
    return State.model_validate(found)
