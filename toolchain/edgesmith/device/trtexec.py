"""NVIDIA's program around TensorRT: called on the device from here, so that the device needs nothing else."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgesmith.device import faults
from edgesmith.device.facts import Reply, State, TimesReply
from edgesmith.device.shipment import BUILD_RECIPE, ENGINE
from edgesmith.device.transport import Workspace
from edgesmith.device.without_python import SCRIPT, call, cool_down, locked_clocks, state
from edgesmith.device.worker.archive import ArrayArchive, Facts, read_batch
from edgesmith.device.worker.machine import read_text
from edgesmith.device.worker.model import WorkerModel
from edgesmith.device.worker.timing import each, take_all_turns
from edgesmith.device.worker.turns import Plan
from edgesmith.errors import ConnectionLostError, DeviceError, RejectedModelError

GRAPH_IGNORED = "has been ignored"
"""Part of what trtexec says where an engine cannot run as a CUDA graph."""
PROFILED_RUNS = 20
FEWEST_RUNS = 10
WARM_UP_MS = 200
"""Before the timed runs of each call: it is a process of its own, and a GPU raises its clocks only under load."""
TIMED = ("--noDataTransfers", "--exportTimes=times.json")
_LOG = "tegrastats.txt"
_POWER_PER_SECOND = 10
"""Lines that tegrastats writes."""
_START_SECONDS = 120
"""For trtexec to load an engine, on top of the time that is asked for."""
_LARGEST_EXPORT_BYTES = 1_000_000_000
"""Outputs are texts of about ten bytes a value."""
_FAULTS = (RuntimeError, LookupError, ValueError, TypeError, AttributeError)
"""What trtexec says of itself, or a file of it that is none of the form that it documents."""


class TrtexecModel(WorkerModel):
    """An engine in trtexec: one call to time it, and one for each batch, whose outputs come as text of six digits.

    Args:
        place: The directory on the device with the recipe and the engine in it.
        script: The path of the shell script there.
        folder: A directory here for the files that are written for trtexec and by it.
        timeout_seconds: When to give up on one call.
    """

    def __init__(self, place: Workspace, script: str, folder: Path, timeout_seconds: float) -> None:
        super().__init__(runtime="trtexec", provider="GPU", optimization="engine")
        self._place, self._script, self._folder, self._timeout = place, script, folder, timeout_seconds
        self._words: list[str] = []
        self._graph: list[str] = []
        self.power_seconds = 0
        """How long the next call may write the board's power to a file; 0 does not."""
        recipe = json.loads(place.pull(BUILD_RECIPE, folder).read_text(encoding="utf-8"))
        # An engine without open dimensions takes no shapes; its recipe has none.
        self._takes_shapes = bool(recipe.get("shapes"))

    def set_inputs(self, arrays: Facts) -> None:
        """Write the inputs of the next runs as files of plain bytes, and copy them to the device."""
        files, shapes = [], []
        for position, (name, array) in enumerate(arrays.items()):
            file = self._folder / f"input-{position}.bin"
            # TensorRT has no float64; its engines take float32 there.
            file.write_bytes((array.astype(np.float32) if array.dtype == np.float64 else array).tobytes())
            self._place.push(file, file.name)
            files.append(f"{name}:{file.name}")
            shapes.append(name + ":" + "x".join(map(str, array.shape)))
        self._words = ["--loadInputs=" + ",".join(files)]
        if self._takes_shapes:
            self._words.append("--shapes=" + ",".join(shapes))

    def times(self, request: Facts) -> list[float]:
        """Return the times of single runs on the GPU in milliseconds, without copies."""
        if request["cuda_graphs"]:
            self.use_graph()
        duration = f"--duration={_whole_seconds(request)}"
        return self._times("--warmUp=500", duration, f"--iterations={request['fewest_runs']}")[: request["most_runs"]]

    def warm_up(self, plan: Plan) -> float:
        """Return how long one call takes in seconds, with the start of the program and the loading of the engine."""
        started = time.perf_counter()
        self.visit(1, True)
        return time.perf_counter() - started

    def visit(self, timed_runs: int, refill: bool) -> list[float]:
        """Return the times of one call in milliseconds: of ten runs at least, since its start takes much longer.

        It is warmed up also where no run refills the caches.
        """
        return self._times(f"--warmUp={WARM_UP_MS}", "--duration=0", f"--iterations={max(timed_runs, FEWEST_RUNS)}")

    def use_graph(self) -> None:
        """Let later timed runs be one launch of a CUDA graph each; the facts say why not where that fails."""
        self._graph = ["--useCudaGraph", "--useSpinWait"]
        try:
            said = self._call(*TIMED, *self._graph, "--warmUp=0", "--duration=0", "--iterations=1")
            self.facts["cuda_graph"] = "was refused by trtexec" if GRAPH_IGNORED in said else "used"
        except RuntimeError as error:
            self.drop_graph()
            self.facts["cuda_graph"] = f"failed: {error}"

    def drop_graph(self) -> None:
        """Let later runs be many launches again."""
        self._graph = []

    def _times(self, *words: str) -> list[float]:
        self._call(*TIMED, *self._graph, *words)
        records = json.loads((self._folder / "times.json").read_text(encoding="utf-8"))
        return [float(record["computeMs"]) for record in records]

    def outputs(self) -> Facts:
        """Return the outputs for the present inputs, by name."""
        self._call("--warmUp=0", "--duration=0", "--iterations=1", "--exportOutput=outputs.json")
        text = (self._folder / "outputs.json").read_text(encoding="utf-8")
        # JSON has no words for them, and trtexec writes them as C++ does.
        odd = re.search(r"[\[,]\s*-?(nan|inf)\b", text)
        if odd:
            raise RuntimeError(f"the engine computes {odd[1]}, as float16 does where a value is too large for it")
        records = json.loads(text)
        shapes = {one["name"]: tuple(int(size) for size in one["dimensions"].split("x") if size) for one in records}
        self.names = list(shapes)
        return {one["name"]: np.array(one["values"], np.float32).reshape(shapes[one["name"]]) for one in records}

    def describe(self) -> tuple[str, str]:
        """Return what `--exportLayerInfo` and `--exportProfile` write; nothing where it fails; facts say why."""
        files = self._folder / "layers.json", self._folder / "profile.json"
        words = [f"--exportLayerInfo={files[0].name}", f"--exportProfile={files[1].name}"]
        words += ["--profilingVerbosity=detailed", "--warmUp=0", "--duration=0", f"--iterations={PROFILED_RUNS}"]
        try:
            self._call(*words)
        except ConnectionLostError:
            raise
        except (RuntimeError, DeviceError) as error:
            # Everything that was asked for is here by now.
            self.facts["engine_problem"] = " ".join(str(getattr(error, "what", error)).split())[:300]
            return "", ""
        return read_text(files[0]), read_text(files[1])

    def _call(self, *words: str) -> str:
        """Run trtexec with the engine and the inputs; return what it said."""
        code, said = self._run(["trtexec", "--loadEngine=" + self._place.path(ENGINE), *self._words, *words])
        lines = said.splitlines()
        if code != 0:
            errors = [line for line in lines if "[E]" in line] or lines[-1:]
            raise RuntimeError("trtexec failed: " + " ".join(errors[:3]))
        version = next((line.partition("[TensorRT v")[2] for line in lines if "[TensorRT v" in line), "")
        if version:
            self.facts["runtime"] = "trtexec of TensorRT " + version.partition("]")[0]
        return said

    def _run(self, words: Sequence[str]) -> tuple[int, str]:
        """Run trtexec in the directory of the engine and fetch what it exports; return its exit code and words.

        Raises:
            RejectedModelError: It was killed, took too long, or wrote no file; with another engine it may not.
            DeviceError: The connection was lost, or the device is full.
        """
        place = self._place
        how = ["timed", place.directory, str(self.power_seconds)] if self.power_seconds else ["run", place.directory]
        try:
            done = call(place.transport, self._script, *how, *words, timeout_seconds=self._timeout)
            if done.code == 0:
                for word in words:
                    name, _, file = word.partition("=")
                    if name.startswith("--export"):
                        place.pull(file, self._folder, largest_bytes=_LARGEST_EXPORT_BYTES)
        except ConnectionLostError:
            raise
        except DeviceError as error:
            # What hangs would take the GPU from those that are timed after it.
            place.stop()
            raise faults.of_the_model(error) from error
        if done.signal_name:
            raise faults.killed(place.transport.address, "trtexec", done.signal_name)
        return done.code, f"{done.stdout}\n{done.stderr}"


def run_in_trtexec(place: Workspace, request: Mapping[str, object], folder: Path, timeout_seconds: float) -> Reply:
    """Time the engine on the device and run it on every batch; the outputs lie in `folder` then.

    Args:
        place: The working directory on the device, with the engine in it.
        request: What the worker is asked elsewhere.
        folder: A directory here, with the inputs.
        timeout_seconds: When to give up on one call of trtexec.

    Raises:
        DeviceError: The engine did not run, was killed, or took too long.
    """
    place.push(SCRIPT, SCRIPT.name)
    try:
        model = TrtexecModel(place, place.path(SCRIPT.name), folder, timeout_seconds)
        return _run_all(place, dict(request), folder, model)
    except _FAULTS as error:
        raise _failed(place, error) from error


def time_in_trtexec(
    place: Workspace, request: Mapping[str, object], folder: Path, timeout_seconds: float
) -> TimesReply:
    """Time several engines on the device in turns, each visit a call of trtexec.

    Args:
        place: The working directory on the device, with the engines in directories of it.
        request: What the worker is asked elsewhere.
        folder: A directory here, with the batch.
        timeout_seconds: When to give up on one call of trtexec.

    Raises:
        DeviceError: No engine runs there, or a call took too long.
    """
    place.push(SCRIPT, SCRIPT.name)
    try:
        return _time_all(place, dict(request), folder, timeout_seconds)
    except _FAULTS as error:
        raise _failed(place, error) from error


def _run_all(place: Workspace, request: Facts, folder: Path, model: TrtexecModel) -> Reply:
    cooling = cool_down(place, request["cool_below_celsius"])
    with np.load(folder / "inputs.npz", allow_pickle=False) as archive:
        model.set_inputs(read_batch(archive, 0, request["inputs"]))
        with locked_clocks(place, wanted=request["lock_clocks"]) as clock_problem:
            before = state(place)
            model.power_seconds = _whole_seconds(request) + _START_SECONDS
            times = model.times(request)
            model.power_seconds = 0
            after = _state_of_one_run(place, before)
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
        tegrastats=_power_while_timed(place, _whole_seconds(request)),
        cooling_seconds=cooling,
        clock_problem=clock_problem,
        engine_layers=layers,
        engine_times=layer_times,
        **model.facts,
    )


def _whole_seconds(request: Facts) -> int:
    """Return how long trtexec times: it takes whole seconds."""
    return max(1, round(float(request["seconds"])))


def _power_while_timed(place: Workspace, seconds: int) -> str:
    """Return the last lines of the power's log, of the time of the runs; nothing where it is shorter.

    The lines before are of the start of trtexec, which takes far less power.
    """
    count = seconds * _POWER_PER_SECOND
    lines = place.transport.run(["tail", "-n", str(count), place.path(_LOG)]).stdout.splitlines()
    return "\n".join(lines) if len(lines) >= count else ""


def _time_all(place: Workspace, request: Facts, folder: Path, timeout_seconds: float) -> TimesReply:
    with np.load(folder / request["batch"], allow_pickle=False) as archive:
        inputs = read_batch(archive, 0, request["inputs"])
    failures: dict[str, str] = {}

    def opened(engine: str) -> TrtexecModel:
        name = engine.rpartition("/")[0]
        (folder / name).mkdir(exist_ok=True)
        model = TrtexecModel(place.inside(name), place.path(SCRIPT.name), folder / name, timeout_seconds)
        model.set_inputs(inputs)
        return model

    own = (*_FAULTS, RejectedModelError)
    models = each(request["models"], opened, failures, own)
    cooling, before = cool_down(place, request["cool_below_celsius"]), state(place)
    found = take_all_turns(models, request, failures, own=own, waiting_clock=lambda: 0.0)
    after = _state_of_one_run(place, before)
    return TimesReply.model_validate(
        {"status": "done", **found, "cooling_seconds": cooling, "before": before, "after": after}
    )


def _state_of_one_run(place: Workspace, before: State) -> State:
    """Return the present state.

    Raises:
        ConnectionLostError: The device restarted since the state `before`, so that times are not of one run.
    """
    after = state(place)
    if after.boot_id != before.boot_id:
        raise faults.restarted(place.transport.address)
    return after


def _failed(place: Workspace, error: Exception) -> DeviceError:
    return faults.failed(place.transport.address, "the model", " ".join(str(error).split())[:4000])
