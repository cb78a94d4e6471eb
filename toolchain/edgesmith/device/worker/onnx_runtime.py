"""A model in ONNX Runtime."""

from pathlib import Path
from typing import Any

from .archive import Facts
from .model import WorkerModel


class OnnxRuntimeModel(WorkerModel):
    """A model in ONNX Runtime on the processor, optimized as far as it goes, as users run it.

    Args:
        path: The graph.
        threads: Threads used inside one operator.
        as_written: Whether it is for another runtime and runs as it is written: at its higher levels ONNX Runtime does
            not load some products in float8, and loses biases beside scales in float16.
        alone: Whether no other model is timed in turns with it: threads that keep spinning after a run would take
            cores from the next.
    """

    def __init__(self, path: Path, threads: int, *, as_written: bool = False, alone: bool = True) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        if not alone:
            options.add_session_config_entry("session.force_spinning_stop", "1")
        disabled = []
        if as_written:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            disabled = ["WeightBiasQuantization"]
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
        super().__init__(
            runtime="onnxruntime " + onnxruntime.__version__,
            provider=self._session.get_providers()[0],
            optimization="basic" if as_written else "all",
        )
        self.names = [output.name for output in self._session.get_outputs()]
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
