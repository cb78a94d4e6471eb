"""Small models and in-memory data for the measurement tests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgesmith_calibration.sources import Batch


class ArrayData:
    """What measurement uses of a data source, over arrays, counting how often it is read."""

    description = "arrays"

    def __init__(self, x: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.x, self.labels, self.readings, self.largest_batch = x, labels, 0, 0

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        self.readings += 1
        for start in range(0, len(self.x), batch_size):
            part = slice(start, start + batch_size)
            yield Batch({"x": self.x[part]}, None if self.labels is None else self.labels[part])


def dense_model(path: Path, *, depth: int = 2, width: int = 16, seed: int = 0, noise: float = 0.0) -> Path:
    """Write a stack of MatMuls named hidden_0, hidden_1, ..., logits; `noise` perturbs the weights."""
    random = np.random.default_rng(seed)
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", width]))
    inputs, nodes, initializers = [value], [], []
    for layer in range(depth):
        weight = random.normal(size=(width, width)) / np.sqrt(width)
        weight += noise * random.normal(size=weight.shape)
        tensor = ir.tensor(weight.astype(np.float32), name=f"weight_{layer}")
        initializers.append(ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape))
        initializers[-1].const_value = tensor
        output = ir.Value(name="logits" if layer == depth - 1 else f"hidden_{layer}")
        nodes.append(ir.Node("", "MatMul", [value, initializers[-1]], outputs=[output], name=f"dense_{layer}"))
        value = output
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", width])
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="dense")
    ir.save(ir.Model(graph, ir_version=10), path)
    return path
