"""An engine in trtexec, NVIDIA's program around TensorRT."""

import json
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .archive import Facts
from .machine import die_with_parent, read_text
from .model import WorkerModel
from .turns import Plan

GRAPH_IGNORED = "has been ignored"
"""Part of what trtexec says where an engine cannot run as a CUDA graph."""
PROFILED_RUNS = 20
FEWEST_RUNS = 10
WARM_UP_MS = 200
"""Before the timed runs of each call: it is a process of its own, and a GPU raises its clocks only under load."""
TIMED = ("--noDataTransfers", "--exportTimes=times.json")


class TrtexecModel(WorkerModel):
    """An engine in trtexec: one call to time it, and one for each batch, whose outputs come as text of six digits."""

    def __init__(self, path: Path, program: str) -> None:
        super().__init__(runtime="trtexec", provider="GPU", optimization="engine")
        self._path, self._program, self._folder = path, program, path.parent
        self._words: list[str] = []
        self._graph: list[str] = []

    def set_inputs(self, arrays: Facts) -> None:
        """Write the inputs of the next runs as files of plain bytes."""
        files, shapes = [], []
        for position, (name, array) in enumerate(arrays.items()):
            file = self._folder / f"input-{position}.bin"
            file.write_bytes(array.tobytes())
            files.append(f"{name}:{file.name}")
            shapes.append(name + ":" + "x".join(map(str, array.shape)))
        self._words = ["--loadInputs=" + ",".join(files)]
        # An engine without open dimensions takes no shapes; its recipe has none.
        if json.loads((self._folder / "build.json").read_text(encoding="utf-8")).get("shapes"):
            self._words.append("--shapes=" + ",".join(shapes))

    def times(self, request: Facts) -> list[float]:
        """Return the times of single runs on the GPU in milliseconds, without copies."""
        if request["cuda_graphs"]:
            self.use_graph()
        duration = str(max(1, round(request["seconds"])))
        return self._times("--warmUp=500", "--duration=" + duration, f"--iterations={request['fewest_runs']}")[
            : request["most_runs"]
        ]

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
            self.facts["cuda_graph"] = "refused by trtexec" if GRAPH_IGNORED in said else "used"
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
        import numpy

        self._call("--warmUp=0", "--duration=0", "--iterations=1", "--exportOutput=outputs.json")
        text = (self._folder / "outputs.json").read_text(encoding="utf-8")
        # JSON has no words for them, and trtexec writes them as C++ does.
        odd = re.search(r"[\[,]\s*-?(nan|inf)\b", text)
        if odd:
            raise RuntimeError(f"the engine computes {odd[1]}, as float16 does where a value is too large for it")
        records = json.loads(text)
        shapes = {one["name"]: tuple(int(size) for size in one["dimensions"].split("x") if size) for one in records}
        self.names = list(shapes)
        return {one["name"]: numpy.array(one["values"], numpy.float32).reshape(shapes[one["name"]]) for one in records}

    def describe(self) -> tuple[str, str]:
        """Return what `--exportLayerInfo` and `--exportProfile` write; nothing where this trtexec knows neither."""
        files = self._folder / "layers.json", self._folder / "profile.json"
        words = [f"--exportLayerInfo={files[0].name}", f"--exportProfile={files[1].name}"]
        words += ["--profilingVerbosity=detailed", "--warmUp=0", "--duration=0", f"--iterations={PROFILED_RUNS}"]
        try:
            self._call(*words)
        except RuntimeError:
            return "", ""
        return read_text(files[0]), read_text(files[1])

    def _call(self, *words: str) -> str:
        """Run trtexec with the engine and the inputs; return what it said."""
        code, said = self._run([self._program, "--loadEngine=" + self._path.name, *self._words, *words])
        lines = said.splitlines()
        if code != 0:
            errors = [line for line in lines if "[E]" in line] or lines[-1:]
            raise RuntimeError("trtexec failed: " + " ".join(errors[:3]))
        version = next((line.partition("[TensorRT v")[2] for line in lines if "[TensorRT v" in line), "")
        if version:
            self.facts["runtime"] = "trtexec of TensorRT " + version.partition("]")[0]
        return said

    def _run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command in the folder of the engine; return its exit code and what it said."""
        done = subprocess.run(command, cwd=self._folder, capture_output=True, check=False, preexec_fn=die_with_parent)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
