"""A device without Python, or without numpy: a shell says what it is, and trtexec is called there from here."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from edgesmith.device import faults
from edgesmith.device.facts import Module, Probe, Reply, State
from edgesmith.device.transport import COMMAND_SECONDS, Finished, Workspace
from edgesmith.device.worker.archive import ArrayArchive, Facts, read_batch
from edgesmith.device.worker.machine import CLOCKS_FILE, MODULES, SECONDS_TO_COOL
from edgesmith.device.worker.trtexec import TrtexecModel

SCRIPT = Path(__file__).with_suffix(".sh")
_LOG = "tegrastats.txt"
_PROBE_SECONDS = 300.0
_START_SECONDS = 120
"""For trtexec to load an engine, on top of the time that is asked for."""
_LARGEST_EXPORT_BYTES = 1_000_000_000
"""Outputs are texts of about ten bytes a value."""
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
        return Probe.model_validate({**empty, **facts, **known, "state": _state(texts), "status": "done"})
    except (ValueError, LookupError) as error:
        raise faults.failed(place.transport.address, "the probe", " ".join(str(error).split())[:300]) from error


class DistantTrtexec(TrtexecModel):
    """The same engine and the same words, with trtexec called on the device; its files are written and read here.

    Args:
        place: The working directory on the device, with the script, the recipe and the engine in it.
        folder: A directory here for the files.
        timeout_seconds: When to give up on one call.
    """

    def __init__(self, place: Workspace, folder: Path, timeout_seconds: float) -> None:
        super().__init__(folder / "engine.plan", "trtexec")
        self._place, self._timeout = place, timeout_seconds
        self.power_seconds = 0
        """How long the next call may write the board's power to a file; 0 does not."""
        place.pull("build.json", folder)

    def set_inputs(self, arrays: Facts) -> None:
        """Write the inputs of the next runs as files of plain bytes, and copy them to the device."""
        super().set_inputs(arrays)
        for position in range(len(arrays)):
            name = f"input-{position}.bin"
            self._place.push(self._folder / name, name)

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        place = self._place
        # The directory in its words shows that the process is ours.
        program = [word.replace("=engine.plan", "=" + place.path("engine.plan")) for word in words]
        how = ["timed", place.directory, str(self.power_seconds)] if self.power_seconds else ["run", place.directory]
        done = _call(place, *how, *program, timeout_seconds=self._timeout)
        if done.signal_name:
            raise faults.killed(place.transport.address, "trtexec", done.signal_name)
        if done.code == 0:
            for word in words:
                name, _, file = word.partition("=")
                if name.startswith("--export"):
                    place.pull(file, self._folder, largest_bytes=_LARGEST_EXPORT_BYTES)
        return done.code, f"{done.stdout}\n{done.stderr}"


def run_by_shell(place: Workspace, request: Mapping[str, object], folder: Path, timeout_seconds: float) -> Reply:
    """Time the engine on the device and run it on every batch; the outputs lie in `folder` then.

    Args:
        place: The working directory on the device, with the engine in it.
        request: What the worker is asked elsewhere.
        folder: A directory here, with the inputs.
        timeout_seconds: When to give up on one call of trtexec.

    Raises:
        DeviceError: The engine did not run, was killed, or took too long.
    """
    address = place.transport.address
    place.push(SCRIPT, SCRIPT.name)
    try:
        return _run_all(place, dict(request), folder, DistantTrtexec(place, folder, timeout_seconds))
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        # What trtexec says of itself, or a file of it that is none of the form that it documents.
        raise faults.failed(address, "the model", " ".join(str(error).split())[:4000]) from error


def _run_all(place: Workspace, request: Facts, folder: Path, model: DistantTrtexec) -> Reply:
    cooling = _cool_down(place, request["cool_below_celsius"])
    with np.load(folder / "inputs.npz", allow_pickle=False) as archive:
        model.set_inputs(read_batch(archive, 0, request["inputs"]))
        with _locked_clocks(place, wanted=request["lock_clocks"]) as clock_problem:
            before = _state(_ask(place, "state"))
            model.power_seconds = round(request["seconds"]) + _START_SECONDS
            times = model.times(request)
            model.power_seconds = 0
            after = _state(_ask(place, "state"))
        with ArrayArchive(folder / "outputs.npz") as written:
            for index in range(request["batches"]):
                model.set_inputs(read_batch(archive, index, request["inputs"]))
                written.add(index, model.outputs())
    layers, layer_times = model.describe()
    return Reply(
        status="done",
        outputs=tuple(model.names),
        times_ms=tuple(times),
        before=before,
        after=after,
        tegrastats=place.transport.run(["tail", "-c", "200000", place.path(_LOG)]).stdout,
        cooling_seconds=cooling,
        clock_problem=clock_problem,
        engine_layers=layers,
        engine_times=layer_times,
        **model.facts,
    )


def _cool_down(place: Workspace, limit_celsius: float) -> float:
    """Wait until every zone is below the limit, if there is one; return the seconds that it took."""
    started = time.monotonic()
    while limit_celsius and (_state(_ask(place, "state")).hottest_celsius or 0.0) > limit_celsius:
        if time.monotonic() - started > SECONDS_TO_COOL:
            raise RuntimeError(f"the device did not cool below {limit_celsius} C in {SECONDS_TO_COOL} s")
        time.sleep(2)
    return time.monotonic() - started if limit_celsius else 0.0


@contextmanager
def _locked_clocks(place: Workspace, *, wanted: bool) -> Iterator[str]:
    """Lock the clocks while the block runs, if that is wanted; yield why it could not be done, or nothing."""
    if not wanted:
        yield ""
        return
    done = _call(place, "lock", place.path(CLOCKS_FILE), timeout_seconds=COMMAND_SECONDS)
    yield "" if done.code == 0 else done.last_line or f"jetson_clocks ended with code {done.code}"
    place.restore_clocks()


def _ask(place: Workspace, what: str, timeout_seconds: float = COMMAND_SECONDS) -> dict[str, str]:
    """Return what the device's tools say, by name."""
    done = _call(place, what, timeout_seconds=timeout_seconds)
    names_and_texts = _SECTION.split(done.stdout)[1:]
    if not names_and_texts:
        raise faults.failed(place.transport.address, "the probe", done.last_line or f"exit code {done.code}")
    return {name: text.strip() for name, text in zip(names_and_texts[::2], names_and_texts[1::2], strict=True)}


def _call(place: Workspace, *words: str, timeout_seconds: float) -> Finished:
    return place.transport.run(["sh", place.path(SCRIPT.name), *words], timeout_seconds=timeout_seconds)


def _state(texts: Mapping[str, str]) -> State:
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
    }
    return State.model_validate(found)
