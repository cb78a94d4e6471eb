"""What is asked of a device: what it is, to build an engine, and to run the model. Through one worker, or trtexec."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from edgesmith.device import faults
from edgesmith.device.facts import Probe, Reply, TimesReply
from edgesmith.device.runtimes import TENSORRT_RTX, TRTEXEC
from edgesmith.device.shipment import BUILD_SCRIPT, SHELL_SCRIPT
from edgesmith.device.transport import Finished, Workspace
from edgesmith.device.trtexec import run_in_trtexec, time_in_trtexec
from edgesmith.device.without_python import probe_by_shell

AnswerT = TypeVar("AnswerT", bound=BaseModel)

WORKER = "worker.pyz"
_CANNOT_EXECUTE, _NOT_FOUND = 126, 127
_PACKAGE = "edgesmith_worker"
_STARTER = f"""import sys
if sys.version_info < (3, 10):
    sys.stderr.write("Python %d.%d is too old" % sys.version_info[:2])
    sys.exit({_NOT_FOUND})
from {_PACKAGE}.main import main
sys.exit(main())
"""
"""An interpreter that is too old counts as none; it must be able to read this."""
REQUEST, ANSWER, OUTPUTS, TAPS = "request.json", "answer.json", "outputs.npz", "taps.npz"
ENGINE_IS_WHOLE = "engine.whole"
"""Written when trtexec has built the engine of the files that are there."""
_PROBE_SECONDS = 600.0
_GRACE_SECONDS = 30.0
"""The worker ends itself at its deadline; a device that does not even do that is given up after this time."""
_NO_PYTHON = "Install Python 3.10 or newer with numpy there, or name its interpreter with --set python=PATH."


def pack_worker(folder: Path) -> Path:
    """Write the worker as one file that an interpreter runs, and return it. The same code gives the same bytes."""
    path = folder / WORKER
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((Path(__file__).parent / "worker").glob("*.py")):
            archive.writestr(zipfile.ZipInfo(f"{_PACKAGE}/{file.name}"), file.read_bytes())
        archive.writestr(zipfile.ZipInfo("__main__.py"), _STARTER)
    return path


def probe_device(place: Workspace, folder: Path) -> Probe:
    """Return what the device is. Copies the worker there.

    Args:
        place: The working directory on the device.
        folder: A scratch directory here.

    Raises:
        DeviceError: It has no Python and no trtexec, or Python fails.
    """
    address, python = place.transport.address, place.transport.python
    place.push(pack_worker(folder), WORKER)
    words = [python, place.path(WORKER), "probe", place.path("probe.json")]
    done = place.transport.run(words, timeout_seconds=_PROBE_SECONDS)
    if done.code == _NOT_FOUND:
        found = probe_by_shell(place)
        if found.trtexec:
            return found
        raise faults.missing_runtime(address, "Python", done.last_line or f"no {python}", _NO_PYTHON)
    if done.code == _CANNOT_EXECUTE:
        raise faults.wrong_architecture(address, done.last_line, f"an interpreter {python} for its processor")
    _require_done(address, "the probe", done)
    return _answer(place, "probe.json", folder, Probe)


def build_engine(place: Workspace, runtime: str, probe: Probe, timeout_seconds: float) -> str:
    """Build the engine on the device with the artifact's own script; return what it said of the result.

    Args:
        place: The working directory on the device, with the artifact in it.
        runtime: Module or program to build with.
        probe: What the device is.
        timeout_seconds: When to give up.

    Raises:
        DeviceError: TensorRT rejected the graph, or is broken there.
    """
    address = place.transport.address
    if runtime == TRTEXEC:
        if place.is_resumed and place.transport.run(["test", "-e", place.path(ENGINE_IS_WHOLE)]).code == 0:
            return "Engine of the try before."
        # A build that is cut off leaves a part of an engine.
        place.remove(ENGINE_IS_WHOLE)
        words = ["env", f"TRTEXEC={probe.trtexec}", "sh", place.path(SHELL_SCRIPT)]
        done = place.run_long(words, timeout_seconds)
        _require_done(address, "building the engine", done)
        place.transport.run(["touch", place.path(ENGINE_IS_WHOLE)])
        return "Engine built on the device with trtexec."
    words = [place.transport.python, place.path(BUILD_SCRIPT), "--module", runtime]
    if runtime == TENSORRT_RTX and probe.gpu:
        # The engine of the artifact was built for a compute capability; named, it is known again.
        words += ["--compute-capability", probe.gpu["compute_capability"]]
    done = place.run_long(words, timeout_seconds)
    _require_not_killed(address, "building the engine", done)
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        errors = "; ".join(str(error.get("message", "")) for error in facts.get("errors", []))
        if done.code == 0:
            return f"Engine {facts['status']} on the device in {float(facts.get('seconds', 0)):.0f} s."
    except (ValueError, LookupError, TypeError, AttributeError):
        errors = done.last_line
    raise faults.failed(address, "building the engine", errors or f"exit code {done.code}")


def run_worker(
    place: Workspace, request: Mapping[str, object], folder: Path, timeout_seconds: float
) -> tuple[Reply, Path]:
    """Run the model on the device; return what it saw, and the directory with the archives of its outputs.

    Raises:
        DeviceError: The model did not run, was killed, or took too long.
    """
    if request["runtime"] == TRTEXEC:
        return run_in_trtexec(place, request, folder, timeout_seconds), folder
    reply = _ask_worker(place, "run", request, folder, timeout_seconds, Reply)
    for name in (OUTPUTS, TAPS) if reply.taps else (OUTPUTS,):
        place.transport.pull(place.path(name), folder / name)
    return reply, folder


def time_in_turns(place: Workspace, request: Mapping[str, object], folder: Path, timeout_seconds: float) -> TimesReply:
    """Time several models on the device in turns.

    Raises:
        DeviceError: One of them did not run, or the worker was killed or took too long.
    """
    if request["runtime"] == TRTEXEC:
        return time_in_trtexec(place, request, folder, timeout_seconds)
    reply = _ask_worker(place, "time", request, folder, timeout_seconds, TimesReply)
    # The same question later is another timing.
    place.remove(ANSWER)
    return reply


def _ask_worker(
    place: Workspace,
    task: str,
    request: Mapping[str, object],
    folder: Path,
    timeout_seconds: float,
    kind: type[AnswerT],
) -> AnswerT:
    """Let the worker do a task; an answer that is there from before the connection was lost is taken."""
    request_file = folder / REQUEST
    request_file.write_text(json.dumps({**request, "deadline_seconds": int(timeout_seconds)}), encoding="utf-8")
    if not (place.is_resumed and place.holds(request_file, REQUEST) and place.has(ANSWER)):
        _start_worker(place, task, request_file, folder, timeout_seconds)
    return _answer(place, ANSWER, folder, kind)


def _start_worker(place: Workspace, task: str, request_file: Path, folder: Path, timeout_seconds: float) -> None:
    address = place.transport.address
    place.remove(ANSWER)
    if place.is_resumed:
        # A board that restarted has lost it.
        place.push(pack_worker(folder), WORKER)
    place.push(request_file, REQUEST)
    words = [place.transport.python, place.path(WORKER), task, place.path(REQUEST)]
    seconds = timeout_seconds + _GRACE_SECONDS
    # Here the worker is a child, which ends with this process. Elsewhere it must be known from its first moment on.
    local = place.transport.is_local
    done = place.transport.run(words, timeout_seconds=seconds) if local else place.run_long(words, seconds)
    if done.signal_name == "SIGALRM":
        raise faults.took_too_long(address, "the model", timeout_seconds)
    _require_not_killed(address, "the model", done)
    if done.code == _NOT_FOUND:
        raise faults.missing_runtime(address, "Python", done.last_line, _NO_PYTHON)
    if not place.has(ANSWER):
        raise faults.failed(address, "the worker", done.last_line or f"exit code {done.code}")


def _answer(place: Workspace, name: str, folder: Path, kind: type[AnswerT]) -> AnswerT:
    file, address = place.pull(name, folder), place.transport.address
    try:
        found = json.loads(file.read_bytes())
        if found["status"] == "failed":
            raise faults.failed(address, "the model", str(found["reason"]))
        return kind.model_validate(found)
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise faults.failed(address, "the worker", f"{name} is not what was asked for: {reason}") from error


def _require_done(address: str, what: str, done: Finished) -> None:
    _require_not_killed(address, what, done)
    if done.code != 0:
        raise faults.failed(address, what, done.reason or f"exit code {done.code}")


def _require_not_killed(address: str, what: str, done: Finished) -> None:
    if done.signal_name:
        raise faults.killed(address, what, done.signal_name)
