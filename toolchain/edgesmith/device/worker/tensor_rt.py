"""An engine in TensorRT's Python module, with buffers and graphs of CUDA's runtime library."""

import ctypes
import json
from pathlib import Path
from typing import Any

from .archive import Facts
from .model import WorkerModel

PROFILED_RUNS = 20
_RELAXED_CAPTURE = 2
"""Of CUDA's three capture modes the one that lets other threads of the runtime go on."""


class Cuda:
    """The few functions of CUDA's runtime library that an engine needs. `library` is what ctypes loaded."""

    def __init__(self, library: Any) -> None:
        self._library = library
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

    def begin_capture(self) -> None:
        """Record what is started on the stream from here on, instead of running it."""
        self._call("cudaStreamBeginCapture", self.stream, ctypes.c_int(_RELAXED_CAPTURE))

    def end_capture(self) -> ctypes.c_void_p:
        """Return what was recorded as a graph that can be launched."""
        graph, launchable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cudaStreamEndCapture", self.stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        self._call("cudaGraphInstantiateWithFlags", ctypes.byref(launchable), graph, flags)
        self._call("cudaGraphDestroy", graph)
        return launchable

    def launch(self, launchable: ctypes.c_void_p) -> None:
        """Start everything in a graph at once."""
        self._call("cudaGraphLaunch", launchable, self.stream)

    def forget(self, launchable: ctypes.c_void_p) -> None:
        """Give a graph back."""
        self._call("cudaGraphExecDestroy", launchable)

    def _copy(self, destination: int | None, source: int | None, size: int, kind: int) -> None:
        places = ctypes.c_void_p(destination), ctypes.c_void_p(source)
        self._call("cudaMemcpy", *places, ctypes.c_size_t(size), ctypes.c_int(kind))

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._library, name, None)
        if function is None:
            raise RuntimeError(f"CUDA's runtime library has no {name}")
        function.restype = ctypes.c_int
        code = function(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} of CUDA's runtime library failed with error {code}")


class TensorRTModel(WorkerModel):
    """An engine in TensorRT. Inputs and outputs stay on the GPU while it is timed.

    `trt` is the module `tensorrt` or one with its interface.
    """

    def __init__(self, path: Path, trt: Any, cuda: Cuda) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise RuntimeError("TensorRT does not load the engine: it was built for another GPU or version")
        super().__init__(runtime="tensorrt " + trt.__version__, provider="GPU", optimization="engine")
        self._trt, self._cuda = trt, cuda
        self._context = self._engine.create_execution_context()
        tensors = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = {name for name in tensors if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
        self._inputs = [name for name in tensors if name in inputs]
        self.names = [name for name in tensors if name not in inputs]
        self._graph: ctypes.c_void_p | None = None
        self._addresses: dict[str, int | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_inputs(self, arrays: Facts) -> None:
        """Copy the inputs of the next runs to the GPU and make room for the outputs."""
        import numpy

        # It holds the addresses of the buffers that are given back here.
        self.drop_graph()
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
        if self._graph is not None:
            self._cuda.launch(self._graph)
        else:
            self._enqueue()
        self._cuda.synchronize()

    def use_graph(self) -> None:
        """Let later runs on these buffers be one launch of a CUDA graph; the facts say why not where it fails."""
        try:
            self._cuda.begin_capture()
            try:
                self._enqueue()
            finally:
                graph = self._cuda.end_capture()
            self._graph = graph
            self.run()
            self.facts["cuda_graph"] = "used"
        except RuntimeError as error:
            self._graph = None
            self.facts["cuda_graph"] = f"failed: {error}"

    def drop_graph(self) -> None:
        """Let later runs be many launches again."""
        if self._graph is not None:
            self._cuda.forget(self._graph)
            self._graph = None

    def describe(self) -> tuple[str, str]:
        """Return the inspector's layers and their times over some runs, both as JSON."""
        if not hasattr(self._engine, "create_engine_inspector"):
            return "", ""
        layers = self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        clock = _clock(self._trt)
        # With a profiler every layer is waited for, so this comes after everything that is timed.
        self._graph, self._context.profiler = None, clock
        for _ in range(PROFILED_RUNS):
            self.run()
        entries = [{"name": name, "averageMs": total / PROFILED_RUNS} for name, total in clock.totals.items()]
        return str(layers), json.dumps([{"count": PROFILED_RUNS}, *entries])

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise RuntimeError("TensorRT could not start the engine")

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


def _clock(trt: Any) -> Any:
    """Return a profiler that adds the times of each layer up."""

    class Clock(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return Clock()
