"""Writes nodes one behind the other, with the shapes and types that later steps read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import Attribute, GraphEditor

Shape = Iterable[int | ir.SymbolicDim]

OPSET = 18
"""First opset of what is written: reductions with axes as an input, ScatterElements that adds, a part of a shape."""


class Writer:
    """Puts nodes into the main graph, each behind the one before.

    Args:
        editor: Edits the graph.
        behind: The first node stands behind this value.
        stem: Begins the names of nodes and constants.
    """

    def __init__(self, editor: GraphEditor, behind: ir.Value, stem: str = "tokens") -> None:
        self.editor = editor
        self.stem = stem
        self._last = behind
        self.written: list[ir.Node] = []
        """All nodes so far."""

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        shape: Shape | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        outputs: int = 1,
    ) -> ir.Value:
        """Add a node and return its first output.

        Args:
            op_type: Operator type of ONNX.
            inputs: Input values, which must exist there.
            attributes: Attribute values by name.
            shape: Shape of the first output.
            dtype: Type of the first output.
            outputs: Number of outputs.
        """
        name = f"{self.stem}.{op_type}"
        node = self.editor.insert_after(self._last, op_type, inputs, attributes, name=name, outputs=outputs)
        self.written.append(node)
        result = node.outputs[0]
        self._last = result
        result.type = ir.TensorType(dtype)
        if shape is not None:
            result.shape = ir.Shape(list(shape))
        return result

    def constant(self, array: NDArray[Any], name: str = "constant") -> ir.Value:
        """Add a constant and return its value."""
        return self.editor.add_initializer(f"{self.stem}.{name}", array)

    def integers(self, *numbers: int) -> ir.Value:
        """Return a constant list of integers, such as axes or a shape."""
        return self.constant(np.asarray(numbers, np.int64), "integers")

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value in another type; the value itself where it has that type, or none is known."""
        if value.dtype in (None, dtype):
            return value
        return self.add("Cast", (value,), {"to": int(dtype)}, shape=value.shape, dtype=dtype)

    def slice(self, value: ir.Value, start: int, stop: int, step: int = 1, *, axis: int = 1) -> ir.Value:
        """Return a part of a value along one axis; start and stop are those of a range."""
        shape = None
        if value.shape is not None:
            shape = [len(range(start, stop, step)) if i == axis else size for i, size in enumerate(value.shape)]
        inputs = (value, *(self.integers(number) for number in (start, stop, axis, step)))
        return self.add("Slice", inputs, shape=shape, dtype=value.dtype or ir.DataType.FLOAT)

    def batch_of(self, value: ir.Value, *sizes: int) -> ir.Value:
        """Return the shape (batch of a value, *sizes): a constant where the batch is fixed."""
        batch = None if value.shape is None else value.shape[0]
        if isinstance(batch, int):
            return self.integers(batch, *sizes)
        integer = ir.DataType.INT64
        first = self.add("Shape", (value,), {"start": 0, "end": 1}, shape=[1], dtype=integer)
        return self.add("Concat", (first, self.integers(*sizes)), {"axis": 0}, shape=[1 + len(sizes)], dtype=integer)
