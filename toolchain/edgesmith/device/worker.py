"""Runs an artifact on a device and writes down what it saw. This file travels to the device alone.

It needs Python 3.10, numpy, and the runtime of the artifact: onnxruntime; or tensorrt with CUDA's runtime library; or
trtexec, NVIDIA's own program around TensorRT.

    python3 worker.py probe ANSWER.json      # what the machine is and which runtimes it has
    python3 worker.py run REQUEST.json       # time and run the model as the request says

Answers are files, since standard output belongs to the runtimes. Texts of the device's own tools are handed over as
they are and read on the machine that asked. Exit codes: 0 done, 1 failed, with the reason in the answer.
"""

import ctypes
import ctypes.util
import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

MODULES = ("numpy", "onnxruntime", "tensorrt", "tensorrt_rtx")
TOOL_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/cuda/bin", "/usr/src/tensorrt/bin")
CUDA_RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so")
SECONDS_PER_TOOL = 20
SECONDS_TO_COOL = 600


def probe() -> Facts:
    """Return what the machine is, which runtimes it has, and its present state."""
    return {
        "architecture": platform.machine(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
        "board": _read("/proc/device-tree/model").rstrip("\0"),
        "cpu_info": _read("/proc/cpuinfo")[:4000],
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "jetson_release": _read("/etc/nv_tegra_release"),
        "jetpack": _tool("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack"),
        "driver": _read("/proc/driver/nvidia/version"),
        "gpus": _tool(
            "nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.total", "--format=csv,noheader"
        ),
        "android": _tool("getprop", "ro.product.model"),
        "cuda_runtime": _cuda_library() is not None,
        "trtexec": _which("trtexec") or "",
        "modules": {name: _version(name) for name in MODULES},
        "state": state(),
    }


def state() -> Facts:
    """Return what changes from minute to minute: power mode, clocks, temperatures, memory."""
    memory = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    return {
        "power_mode": _tool("nvpmodel", "-q"),
        "clocks": _clocks(),
        "temperatures_celsius": _temperatures(),
        "memory_kib": {name: int(memory[name].split()[0]) for name in ("MemTotal", "MemAvailable") if name in memory},
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else [],
    }


def _clocks() -> list[list[Any]]:
    """Return lowest, highest and present frequency of each processor policy and device, as the kernel shows them."""
    shown = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpufreq").glob("policy*")):
        shown.append([folder.name, *(_read(folder / f"scaling_{name}_freq") for name in ("min", "max", "cur"))])
    for folder in sorted(Path("/sys/class/devfreq").glob("*")):
        shown.append([folder.name, *(_read(folder / f"{name}_freq") for name in ("min", "max", "cur"))])
    return [[name, *map(int, numbers)] for name, *numbers in shown if all(number.isdigit() for number in numbers)]


def _temperatures() -> dict[str, float]:
    found = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        degrees = _read(zone / "temp")
        if degrees.lstrip("-").isdigit():
            found[zone.name + " " + _read(zone / "type")] = int(degrees) / 1000
    return found


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *TOOL_FOLDERS]))


def _tool(name: str, *arguments: str) -> str:
    """Return what a tool of the device prints; nothing where it is missing or fails."""
    program = _which(name)
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, timeout=SECONDS_PER_TOOL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _die_with_parent() -> None:
    """Have the kernel end this process when the worker ends, however that happens."""
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl"):
        set_signal_of_parents_death = 1
        library.prctl(set_signal_of_parents_death, int(signal.SIGKILL))


def _version(module: str) -> dict[str, str]:
    """Return version and reason of absence of a module. Asked in a child: some end the process without a driver."""
    code = "import sys, importlib; print(importlib.import_module(sys.argv[1]).__version__)"
    try:
        done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"version": "", "reason": str(error)}
    if done.returncode == 0:
        return {"version": done.stdout.decode().strip().splitlines()[-1], "reason": ""}
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return {"version": "", "reason": lines[-1] if lines else f"the import ended with code {done.returncode}"}


class OnnxRuntimeModel:
    """A model in ONNX Runtime on the processor, optimized as far as it goes, as users run it."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self._session.get_outputs()]
        self.facts = {
            "runtime": "onnxruntime " + onnxruntime.__version__,
            "provider": self._session.get_providers()[0],
            "optimization": "all",
        }
        self._feed: Facts = {}

    def set_inputs(self, arrays: Facts) -> None:
        """Take the inputs of the next runs."""
        self._feed = {entry.name: arrays[entry.name] for entry in self._session.get_inputs()}

    def run(self) -> Any:
        """Run once, from inputs in memory to outputs in memory."""
        return self._session.run(self.names, self._feed)

    def outputs(self) -> Facts:
        """Return the outputs for the present inputs, by name."""
        return dict(zip(self.names, self.run(), strict=True))


class TrtexecModel:
    """An engine in trtexec: one call to time it, and one for each batch, whose outputs come as text of six digits."""

    def __init__(self, path: Path, program: str) -> None:
        self._path, self._program, self._folder = path, program, path.parent
        self.names: list[str] = []
        self.facts = {"runtime": "trtexec", "provider": "GPU", "optimization": "engine"}
        self._words: list[str] = []

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
        duration = str(max(1, round(request["seconds"])))
        fewest = f"--iterations={request['fewest_runs']}"
        timing = ["--warmUp=500", "--duration=" + duration, fewest, "--noDataTransfers", "--exportTimes=times.json"]
        self._call(*timing)
        records = json.loads((self._folder / "times.json").read_text(encoding="utf-8"))
        return [float(record["computeMs"]) for record in records][: request["most_runs"]]

    def outputs(self) -> Facts:
        """Return the outputs for the present inputs, by name."""
        import numpy

        self._call("--warmUp=0", "--duration=0", "--iterations=1", "--exportOutput=outputs.json")
        records = json.loads((self._folder / "outputs.json").read_text(encoding="utf-8"))
        shapes = {one["name"]: tuple(int(size) for size in one["dimensions"].split("x") if size) for one in records}
        self.names = list(shapes)
        return {one["name"]: numpy.array(one["values"], numpy.float32).reshape(shapes[one["name"]]) for one in records}

    def _call(self, *words: str) -> None:
        command = [self._program, "--loadEngine=" + self._path.name, *self._words, *words]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, check=False, preexec_fn=_die_with_parent)
        lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
        if done.returncode != 0:
            errors = [line for line in lines if "[E]" in line] or lines[-1:]
            raise RuntimeError("trtexec failed: " + " ".join(errors[:3]))
        version = next((line.partition("[TensorRT v")[2] for line in lines if "[TensorRT v" in line), "")
        if version:
            self.facts["runtime"] = "trtexec of TensorRT " + version.partition("]")[0]


class Cuda:
    """The few functions of CUDA's runtime library that an engine needs. `library` is what ctypes loaded."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name in ("cudaMalloc", "cudaFree", "cudaMemcpy", "cudaStreamCreate", "cudaStreamSynchronize"):
            getattr(library, name).restype = ctypes.c_int
        self.stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def allocate(self, size: int) -> int | None:
        """Return the address of `size` new bytes on the GPU."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return pointer.value

    def free(self, address: int | None) -> None:
        """Give bytes on the GPU back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy_to(self, address: int | None, array: Any) -> None:
        """Copy a contiguous array to the GPU."""
        self._copy(address, array.ctypes.data, array.nbytes, 1)

    def copy_from(self, array: Any, address: int | None) -> None:
        """Fill a contiguous array from the GPU."""
        self._copy(array.ctypes.data, address, array.nbytes, 2)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def _copy(self, destination: int | None, source: int | None, size: int, kind: int) -> None:
        places = ctypes.c_void_p(destination), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *places, ctypes.c_size_t(size), ctypes.c_int(kind))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} of CUDA's runtime library failed with error {code}")


class TensorRTModel:
    """An engine in TensorRT. Inputs and outputs stay on the GPU while it is timed.

    `trt` is the module `tensorrt` or one with its interface.
    """

    def __init__(self, path: Path, trt: Any, cuda: Cuda) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise RuntimeError("TensorRT does not load the engine: it was built for another GPU or version")
        self._trt, self._cuda = trt, cuda
        self._context = self._engine.create_execution_context()
        tensors = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in tensors if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self._inputs = [name for name in tensors if name in inputs]
        self.names = [name for name in tensors if name not in inputs]
        self.facts = {"runtime": "tensorrt " + trt.__version__, "provider": "GPU", "optimization": "engine"}
        self._addresses: dict[str, int | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_inputs(self, arrays: Facts) -> None:
        """Copy the inputs of the next runs to the GPU and make room for the outputs."""
        import numpy

        for address in self._addresses.values():
            self._cuda.free(address)
        self._addresses, self._shapes = {}, {}
        for name in self._inputs:
            array = numpy.ascontiguousarray(arrays[name], dtype=self._trt.nptype(self._engine.get_tensor_dtype(name)))
            if not self._context.set_input_shape(name, tuple(array.shape)):
                raise RuntimeError(f"the engine takes no {name} of shape {array.shape}; see shapes in build.json")
            self._bind(name, array.nbytes)
            self._cuda.copy_to(self._addresses[name], array)
        for name in self.names:
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise RuntimeError(f"the shape of {name} depends on the data, which is not measured yet")
            self._shapes[name] = shape
            self._bind(name, self._empty(name).nbytes)

    def run(self) -> None:
        """Run once on the GPU and wait for the end."""
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise RuntimeError("TensorRT could not start the engine")
        self._cuda.synchronize()

    def outputs(self) -> Facts:
        """Return the outputs for the present inputs, by name."""
        self.run()
        arrays = {name: self._empty(name) for name in self.names}
        for name, array in arrays.items():
            self._cuda.copy_from(array, self._addresses[name])
        return arrays

    def _bind(self, name: str, size: int) -> None:
        self._addresses[name] = self._cuda.allocate(size)
        self._context.set_tensor_address(name, self._addresses[name])

    def _empty(self, name: str) -> Any:
        import numpy

        return numpy.empty(self._shapes[name], self._trt.nptype(self._engine.get_tensor_dtype(name)))


def _cuda_library() -> Any:
    for name in (*CUDA_RUNTIMES, ctypes.util.find_library("cudart") or "libcudart.dylib"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def open_model(request: Facts, folder: Path) -> OnnxRuntimeModel | TensorRTModel | TrtexecModel:
    """Return the model that a request names, ready to run."""
    path = folder / request["model"]
    if request["runtime"] == "onnxruntime":
        return OnnxRuntimeModel(path, request["threads"])
    if request["runtime"] == "trtexec":
        return TrtexecModel(path, _which("trtexec") or "trtexec")
    library = _cuda_library()
    if library is None:
        raise RuntimeError("CUDA's runtime library (libcudart) is not found, so no buffers can be made on the GPU")
    return TensorRTModel(path, importlib.import_module(request["runtime"]), Cuda(library))


def measure(model: OnnxRuntimeModel | TensorRTModel | TrtexecModel, request: Facts) -> list[float]:
    """Return the times of single runs in milliseconds, after untimed ones."""
    if isinstance(model, TrtexecModel):
        return model.times(request)
    for _ in range(request["warmup_runs"]):
        model.run()
    times: list[float] = []
    end = time.perf_counter() + request["seconds"]
    while len(times) < request["fewest_runs"] or (time.perf_counter() < end and len(times) < request["most_runs"]):
        started = time.perf_counter()
        model.run()
        times.append((time.perf_counter() - started) * 1e3)
    return times


def cool_down(limit_celsius: float) -> float:
    """Wait until every zone is below the limit; return the seconds that it took."""
    started = time.monotonic()
    while max(_temperatures().values(), default=0.0) > limit_celsius:
        if time.monotonic() - started > SECONDS_TO_COOL:
            raise RuntimeError(f"the device did not cool below {limit_celsius} C in {SECONDS_TO_COOL} s")
        time.sleep(2)
    return time.monotonic() - started


@contextmanager
def power_log(path: Path) -> Iterator[None]:
    """Let tegrastats, where there is one, write to `path` while the block runs."""
    program = _which("tegrastats")
    if program is None:
        yield
        return
    with path.open("wb") as log:
        process = subprocess.Popen(
            [program, "--interval", "100"], stdout=log, stderr=subprocess.DEVNULL, preexec_fn=_die_with_parent
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(request: Facts, folder: Path) -> Facts:
    """Time the model on the first batch, run it on all batches, and return what was seen."""
    import numpy

    model = open_model(request, folder)
    waited = cool_down(request["cool_below_celsius"]) if request["cool_below_celsius"] else 0.0
    before, log = state(), folder / "tegrastats.txt"
    with (
        numpy.load(folder / "inputs.npz", allow_pickle=False) as archive,
        ArrayArchive(folder / "outputs.npz") as written,
    ):
        model.set_inputs(read_batch(archive, 0, request["inputs"]))
        with power_log(log):
            times = measure(model, request)
        after = state()
        for index in range(request["batches"]):
            model.set_inputs(read_batch(archive, index, request["inputs"]))
            written.add(index, model.outputs())
    return {
        "outputs": model.names,
        "times_ms": times,
        "before": before,
        "after": after,
        "tegrastats": _read(log)[-200_000:],
        "cooling_seconds": waited,
        **model.facts,
    }


class ArrayArchive:
    """An archive in numpy's format that takes one array after another, so that only one batch is in memory."""

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w")

    def __enter__(self) -> "ArrayArchive":
        return self

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def add(self, index: int, arrays: Facts) -> None:
        """Write the arrays of one batch, by position: an output may be called what no file can."""
        import numpy

        for position, array in enumerate(arrays.values()):
            with self._archive.open(f"{index}-{position}.npy", "w", force_zip64=True) as stream:
                numpy.lib.format.write_array(stream, numpy.asarray(array), allow_pickle=False)


def read_batch(archive: Any, index: int, names: Sequence[str]) -> Facts:
    """Return the arrays of one batch by name, out of an opened archive."""
    return {name: archive[f"{index}-{position}"] for position, name in enumerate(names)}


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
        found = {"status": "done", **run(request, path.parent)}
    except Exception as error:  # noqa: BLE001  whatever a runtime raises is told to the machine that asked
        found = {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:4000]}
    _answer(path.parent / "answer.json", found)
    return 0 if found["status"] == "done" else 1


def _answer(path: Path, found: Facts) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
