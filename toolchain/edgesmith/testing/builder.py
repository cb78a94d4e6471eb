"""Writes small ONNX graphs node by node, with random but fixed weights, for tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper


class GraphBuilder:
    """Builds a graph node by node. Methods that add nodes return the name of the value that the last one makes.

    Args:
        opset: Version of the ONNX operators.
        seed: Seed of the weights.
        inputs: Name and shape of each input of type float32; a text in a shape is a dynamic size of that name.
    """

    def __init__(self, *, opset: int = 20, seed: int = 0, **inputs: Sequence[int | str]) -> None:
        self._opset = opset
        self._generator = np.random.default_rng(seed)
        self._inputs: list[onnx.ValueInfoProto] = []
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []
        for name, shape in inputs.items():
            self.input(name, shape)

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Add an input of a type of `onnx.TensorProto`."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Add a float32 weight of normal numbers that keep the magnitude of what they are multiplied with."""
        spread = 1.5 / np.sqrt(max(np.prod(shape) / shape[0], 1))
        return self.constant(name, self._generator.normal(0, spread, shape).astype(np.float32))

    def constant(self, name: str, array: ArrayLike) -> str:
        """Add a constant with the type of `array`."""
        self._tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, *numbers: int) -> str:
        """Add a list of int64 numbers, such as the target of a Reshape."""
        return self.constant(f"integers_{len(self._tensors)}", np.asarray(numbers, np.int64))

    def number(self, value: float | bool, dtype: type[np.generic] = np.float32) -> str:
        """Add a single number without dimensions."""
        return self.constant(f"number_{len(self._tensors)}", np.asarray(value, dtype))

    def add(
        self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", name: str = "", **attributes: object
    ) -> str:
        """Add a node and return the name of its first output; arguments are those of `add_many`."""
        return self.add_many(operator, *inputs, outputs=outputs, domain=domain, name=name, **attributes)[0]

    def add_many(
        self, operator: str, *inputs: str, outputs: int, domain: str = "", name: str = "", **attributes: object
    ) -> list[str]:
        """Add a node and return the names of its outputs.

        Args:
            operator: Operator type.
            inputs: Names of values; an empty name leaves an input out.
            outputs: Number of outputs.
            domain: Operator domain.
            name: Name of the node; by default operator and number.
            attributes: Attributes of the node.
        """
        name = name or f"{operator}_{len(self._nodes)}"
        names = [f"{name}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, inputs, names, name=name, domain=domain, **attributes))
        return names

    def conv(self, source: str, name: str, inner: int, outer: int, *, kernel: int = 1, **attributes: Any) -> str:
        """Add a Conv with bias; `inner` and `outer` are its input and output channels."""
        groups: int = attributes.get("group", 1)
        weight = self.weight(f"{name}.weight", outer, inner // groups, kernel, kernel)
        return self.add("Conv", source, weight, self.weight(f"{name}.bias", outer), **attributes)

    def norm(self, source: str, name: str, channels: int) -> str:
        """Add a BatchNormalization."""
        parts = [self.weight(f"{name}.{part}", channels) for part in ("scale", "bias", "mean")]
        variance = self.constant(f"{name}.var", self._generator.uniform(0.5, 1.5, channels).astype(np.float32))
        return self.add("BatchNormalization", source, *parts, variance)

    def linear(self, source: str, name: str, inner: int, outer: int) -> str:
        """Add a MatMul with a bias behind it."""
        made = self.add("MatMul", source, self.weight(f"{name}.weight", inner, outer))
        return self.add("Add", made, self.weight(f"{name}.bias", outer))

    def finish(self, *outputs: str, infer: bool = True) -> ir.Model:
        """Return the graph with these values as its outputs.

        Args:
            outputs: Names of values.
            infer: Whether values inside the graph get types and shapes.
        """
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self._nodes, "built", self._inputs, values, self._tensors)
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid("custom", 1)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        # Where inference stops, an output has the rank of the input.
        rank = len(proto.graph.input[0].type.tensor_type.shape.dim)
        for each in (proto, inferred):
            typed = {value.name: value for value in inferred.graph.output}
            del each.graph.output[:]
            for name, value in typed.items():
                known = value.type.HasField("tensor_type")
                each.graph.output.append(
                    value if known else helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
                )
        made: ir.Model = ir.from_proto(inferred if infer else proto)
        return made
