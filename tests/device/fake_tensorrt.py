"""A fake of TensorRT's module and of CUDA's runtime library, in main memory. It computes y = 2 x + 1.

It follows the documented names and rules of the real interfaces as far as the worker uses them, and proves nothing
about the real ones.
"""

import ctypes
import json
from types import SimpleNamespace

import numpy as np

SUCCESS, OUT_OF_MEMORY, NOT_PERMITTED = 0, 2, 800
FUNCTIONS = (
    "cudaMalloc",
    "cudaFree",
    "cudaMemcpy",
    "cudaStreamCreate",
    "cudaStreamSynchronize",
    "cudaStreamBeginCapture",
    "cudaStreamEndCapture",
    "cudaGraphInstantiateWithFlags",
    "cudaGraphLaunch",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
)


class FakeCudaLibrary:
    """What ctypes would load; keeps every allocation, so that a test sees leaks."""

    def __init__(self, most_bytes: int = 1 << 20) -> None:
        self.blocks: dict[int, ctypes.Array] = {}
        self.most_bytes = most_bytes
        self.capturing: list | None = None
        self.graphs: dict[int, list] = {}
        self.launches = 0
        self.takes_graphs = True
        for name in FUNCTIONS:
            # A function object, since the worker sets `restype` on it.
            setattr(self, name, self._function(getattr(self, "_" + name)))

    @staticmethod
    def _function(method):
        def call(*arguments):
            return method(*arguments)

        return call

    def _cudaStreamCreate(self, stream) -> int:
        stream._obj.value = 77
        return SUCCESS

    def _cudaStreamSynchronize(self, stream) -> int:
        return SUCCESS

    def _cudaMalloc(self, pointer, size) -> int:
        if size.value + sum(map(ctypes.sizeof, self.blocks.values())) > self.most_bytes:
            return OUT_OF_MEMORY
        block = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[pointer._obj.value] = block
        return SUCCESS

    def _cudaFree(self, pointer) -> int:
        del self.blocks[pointer.value]
        return SUCCESS

    def _cudaMemcpy(self, destination, source, size, kind) -> int:
        device = {1: destination, 2: source}[kind.value]
        assert ctypes.sizeof(self.blocks[device.value]) >= size.value
        ctypes.memmove(destination, source, size.value)
        return SUCCESS

    def _cudaStreamBeginCapture(self, stream, mode) -> int:
        assert self.capturing is None
        self.capturing = []
        FakeContext.recorder = self.capturing
        return SUCCESS

    def _cudaStreamEndCapture(self, stream, graph) -> int:
        FakeContext.recorder = None
        work, self.capturing = self.capturing, None
        if not self.takes_graphs:
            return NOT_PERMITTED
        graph._obj.value = 1000 + len(self.graphs)
        self.graphs[graph._obj.value] = work
        return SUCCESS

    def _cudaGraphInstantiateWithFlags(self, launchable, graph, flags) -> int:
        launchable._obj.value = graph.value + 1_000_000
        self.graphs[launchable._obj.value] = self.graphs[graph.value]
        return SUCCESS

    def _cudaGraphLaunch(self, launchable, stream) -> int:
        self.launches += 1
        for work in self.graphs[launchable.value]:
            work()
        return SUCCESS

    def _cudaGraphDestroy(self, graph) -> int:
        del self.graphs[graph.value]
        return SUCCESS

    _cudaGraphExecDestroy = _cudaGraphDestroy


class FakeContext:
    recorder: list | None = None
    profiler = None

    def __init__(self, engine) -> None:
        self._engine, self.addresses, self.shape = engine, {}, None

    def set_input_shape(self, name, shape) -> bool:
        assert name == "x"
        self.shape = shape
        return shape[0] <= self._engine.largest_batch

    def get_tensor_shape(self, name):
        return (-1,) if self._engine.data_dependent else self.shape

    def set_tensor_address(self, name, address) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream) -> bool:
        assert stream == 77
        if FakeContext.recorder is not None:
            FakeContext.recorder.append(self._compute)
            return True
        self._compute()
        if self.profiler is not None:
            self.profiler.report_layer_time("made-up layer", 0.5)
        return True

    def _compute(self) -> None:
        count = int(np.prod(self.shape))
        x, y = (
            np.ctypeslib.as_array(ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float)), (count,))
            for name in ("x", "y")
        )
        y[:] = 2 * x + 1


class FakeEngine:
    num_io_tensors = 2
    data_dependent = False
    largest_batch = 8

    def get_tensor_name(self, index):
        return ("x", "y")[index]

    def get_tensor_mode(self, name):
        return FakeTensorRT.TensorIOMode.INPUT if name == "x" else FakeTensorRT.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return "FLOAT"

    def create_execution_context(self):
        return FakeContext(self)

    def create_engine_inspector(self):
        layers = {"Layers": [{"Name": "made-up layer", "LayerType": "made up", "Inputs": [], "Outputs": []}]}
        return SimpleNamespace(get_engine_information=lambda form: json.dumps(layers))


class FakeTensorRT:
    """The module. `Runtime` loads only what says that it is a fake engine."""

    __version__ = "0.0-fake"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    engine: type[FakeEngine] = FakeEngine
    LayerInformationFormat = SimpleNamespace(JSON="json")

    class IProfiler:
        pass

    class Logger:
        ERROR = 1

        def __init__(self, level) -> None:
            pass

    class Runtime:
        def __init__(self, logger) -> None:
            pass

        def deserialize_cuda_engine(self, content):
            return FakeTensorRT.engine() if content == b"fake engine" else None

    @staticmethod
    def nptype(dtype):
        return {"FLOAT": np.float32}[dtype]
