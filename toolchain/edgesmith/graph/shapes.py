"""Concrete shapes of every value, once the symbolic dimensions of the inputs are given numbers.

Exporters compute shapes inside the graph (Shape, Gather, Concat, Reshape). With numbers for the inputs' dimensions
these computations can be carried out, so each Reshape has a plain target. This file walks the graph once, infers
each node's output with ONNX's own inference, and evaluates the small integer values that later shapes depend on.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.runtime_shapes import runtime_shape

Array = NDArray[Any]

_SHAPE_VALUE_ELEMENTS = 64
_EVALUATION_ELEMENTS = 1 << 22
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"})
# What ONNX's inference and reference evaluator raise on nodes that they cannot handle.
_REFUSALS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    NotImplementedError,
    AttributeError,
)


def bind_dimensions(
    model: ir.Model, dimensions: Mapping[str, int] | None = None, *, batch: int = 1, sequence: int = 128
) -> dict[str, int]:
    """Return a number for each symbolic dimension of the inputs.

    Args:
        model: The graph.
        dimensions: Numbers by the dimension's name; a dimension without a name is called "input:axis".
        batch: Used for any other first dimension.
        sequence: Used for the remaining ones, except that sides of images are 224 and a cache of earlier keys is empty.
    """
    bound = dict(dimensions or {})
    for value in model.graph.inputs:
        shape = tuple(value.shape or ())
        for axis, size in enumerate(shape):
            if isinstance(size, int):
                continue
            name = size.value or f"{value.name}:{axis}"
            unnamed_state = axis == 1 and len(shape) == 3 and size.value is None
            if axis == 0 or unnamed_state:
                default = batch
            elif len(shape) == 4:
                # A cache of keys and values has heads and head size fixed and only its length open.
                default = 0 if axis == 2 and isinstance(shape[1], int) and isinstance(shape[-1], int) else 224
            else:
                default = sequence
            bound.setdefault(name, default)
    return bound


class Shapes:
    """Concrete shapes, and the small values that shapes are computed from.

    Args:
        model: The graph. It is not changed.
        dimensions: A number for each symbolic dimension, from `bind_dimensions`.
    """

    def __init__(self, model: ir.Model, dimensions: Mapping[str, int]) -> None:
        self.dimensions = dict(dimensions)
        self.branches: dict[ir.Node, ir.Graph] = {}
        """The branch that each If takes, where its condition follows from shapes alone."""
        self._types: dict[ir.Value, onnx.TypeProto] = {}
        self._known: dict[ir.Value, Array] = {}
        self._opsets = {("" if domain == "ai.onnx" else domain): v for domain, v in model.opset_imports.items()}
        self._imports = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets.items()]
        self._ir_version = model.ir_version
        self._walk(model.graph)

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Return the shape of a value, or None when it is not known completely."""
        if value is None:
            return None
        kind = self._types.get(value)
        if kind is None or not kind.tensor_type.HasField("shape"):
            tensor = constant_tensor(value)
            return None if tensor is None else tuple(int(size) for size in tensor.shape.numpy())
        sizes = kind.tensor_type.shape.dim
        return tuple(d.dim_value for d in sizes) if all(d.HasField("dim_value") for d in sizes) else None

    def known(self, value: ir.Value | None) -> Array | None:
        """Return a value that follows from shapes and constants alone, or None."""
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        tensor = constant_tensor(value)
        return None if tensor is None or tensor.size > _EVALUATION_ELEMENTS else tensor.numpy()

    def evaluate(self, value: ir.Value, given: Mapping[ir.Value, Array]) -> Array | None:
        """Return a value computed from given values, shapes and constants, or None when that is not possible.

        Only what the value depends on is computed; a Shape node needs no data. Large intermediate results are refused.
        """
        results: dict[ir.Value, Array] = dict(given)
        pending = [value]
        while pending:
            current = pending[-1]
            if current in results:
                pending.pop()
                continue
            known = self.known(current)
            if known is not None:
                results[current] = known
                continue
            node = current.producer()
            if node is None or node.op_type in _RANDOM or self._has_graph(node):
                return None
            missing = [source for source in _present(node) if source not in results]
            if missing and len(pending) < 10_000:
                pending.extend(missing)
                continue
            if missing or not self._small(node.outputs, _EVALUATION_ELEMENTS):
                return None
            outputs = self.run(node, results)
            if outputs is None:
                return None
            results.update(outputs)
        return results[value]

    def run(self, node: ir.Node, arrays: Mapping[ir.Value, Array]) -> dict[ir.Value, Array] | None:
        """Return the outputs of one node for the given arrays, or None when it cannot be evaluated."""
        if node.op_type == "GatherElements":
            # ONNX's reference evaluator fails on more than 64 entries along the axis.
            data, indices = (arrays[value] for value in _present(node))
            axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
            return {node.outputs[0]: np.take_along_axis(data, indices % max(data.shape[axis], 1), axis)}
        proto = self._proto(node)
        feeds = {f"i{i}": arrays[v] for i, v in enumerate(node.inputs) if v is not None}
        try:
            with np.errstate(all="ignore"):
                outputs = ReferenceEvaluator(proto, opsets=self._opsets).run(None, feeds)
        except _REFUSALS:
            return None
        return {value: np.asarray(array) for value, array in zip(node.outputs, outputs, strict=False)}

    def _walk(self, graph: ir.Graph) -> None:
        for value in graph.inputs:
            self._types.setdefault(value, self._declared(value))
        for node in graph:
            subgraphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
            for subgraph in subgraphs:
                self._walk(subgraph)
            if node.op_type == "If" and subgraphs:
                self._merge_branches(node)
            elif subgraphs:
                self._leave_body(node, subgraphs[0])
            else:
                self._infer(node)

    def _merge_branches(self, node: ir.Node) -> None:
        condition = self.known(node.inputs[0])
        branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        if condition is not None:
            branches = [branches[0] if condition.reshape(-1)[0] else branches[1]]
            self.branches[node] = branches[0]
        for index, output in enumerate(node.outputs):
            found = [self._types.get(branch.outputs[index]) for branch in branches]
            if found[0] is not None and all(kind == found[0] for kind in found):
                self._types[output] = found[0]

    def _leave_body(self, node: ir.Node, body: ir.Graph) -> None:
        """Take over what a loop carries when an iteration keeps its shape; else believe what the file declares."""
        for index, value in enumerate(node.outputs):
            self._types[value] = self._declared(value)
            if node.op_type == "Loop" and index + 2 < len(node.inputs) and index + 1 < len(body.outputs):
                initial, result = node.inputs[index + 2], self._types.get(body.outputs[index + 1])
                if initial is not None and result is not None and result == self._type(initial):
                    self._types[value] = result

    def _infer(self, node: ir.Node) -> None:
        if node.op_type in ("Shape", "Size") and node.domain == "":
            self._know_shape(node)
            return
        types = {f"i{i}": self._type(value) for i, value in enumerate(node.inputs) if value is not None}
        data = {
            f"i{i}": onnx.numpy_helper.from_array(array)
            for i, value in enumerate(node.inputs)
            if (array := self._shape_value(value)) is not None
        }
        inferred: dict[str, onnx.TypeProto] = {}
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opsets.get(node.domain, 1), node.domain)
            if all(types[f"i{i}"].WhichOneof("value") for i, v in enumerate(node.inputs) if v is not None):
                inferred = onnx.shape_inference.infer_node_outputs(
                    schema, self._proto(node), types, data, opset_imports=self._imports, ir_version=self._ir_version
                )
        except _REFUSALS:
            inferred = {}
        if not inferred:
            inferred = self._infer_runtime(node)
        for index, value in enumerate(node.outputs):
            self._types[value] = _merge(inferred.get(f"o{index}"), self._declared(value))
        if len(data) == len(_present(node)) and not self._has_graph(node) and node.op_type not in _RANDOM:
            self._evaluate_small(node)

    def _infer_runtime(self, node: ir.Node) -> dict[str, onnx.TypeProto]:
        shape = runtime_shape(node, [self.shape(value) for value in node.inputs])
        if shape is None:
            return {}
        source = self._type(_present(node)[0]).tensor_type.elem_type
        return {"o0": onnx.helper.make_tensor_type_proto(source, list(shape))}

    def _evaluate_small(self, node: ir.Node) -> None:
        if not self._small(node.outputs, _SHAPE_VALUE_ELEMENTS) or constant_tensor(node.outputs[0]) is not None:
            return
        arrays = {value: array for value in _present(node) if (array := self._shape_value(value)) is not None}
        for value, array in (self.run(node, arrays) or {}).items():
            self._set_known(value, array)

    def _know_shape(self, node: ir.Node) -> None:
        shape = self.shape(node.inputs[0])
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        end = node.attributes["end"].as_int() if "end" in node.attributes else None
        kind = self._types.get(node.inputs[0]) if node.inputs[0] is not None else None
        if shape is not None:
            full = np.asarray(shape, np.int64)
            self._set_known(node.outputs[0], np.asarray(full.prod()) if node.op_type == "Size" else full[start:end])
        else:
            rank = None
            if kind is not None and kind.tensor_type.HasField("shape") and node.op_type == "Shape":
                rank = [len(range(len(kind.tensor_type.shape.dim))[start:end])]
            self._types[node.outputs[0]] = onnx.helper.make_tensor_type_proto(onnx.TensorProto.INT64, rank)

    def _set_known(self, value: ir.Value, array: Array) -> None:
        self._known[value] = array
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        self._types[value] = onnx.helper.make_tensor_type_proto(kind, list(array.shape))

    def _shape_value(self, value: ir.Value | None) -> Array | None:
        if value is None:
            return None
        if value in self._known:
            return self._known[value]
        tensor = constant_tensor(value)
        if tensor is None or tensor.size > _SHAPE_VALUE_ELEMENTS or tensor.dtype == ir.DataType.STRING:
            return None
        return tensor.numpy()

    def _type(self, value: ir.Value) -> onnx.TypeProto:
        if value in self._types:
            return self._types[value]
        tensor = constant_tensor(value)
        if tensor is not None:
            kind = onnx.helper.make_tensor_type_proto(int(tensor.dtype), [int(s) for s in tensor.shape.numpy()])
        else:
            kind = self._declared(value)
        self._types[value] = kind
        return kind

    def _declared(self, value: ir.Value) -> onnx.TypeProto:
        if value.type is None:
            return onnx.TypeProto()
        proto = ir.serde.serialize_type(value.type)
        if value.shape is None or not proto.HasField("tensor_type"):
            return proto
        shape = proto.tensor_type.shape
        shape.Clear()
        for axis, size in enumerate(value.shape):
            number = size if isinstance(size, int) else self._bound(size, f"{value.name}:{axis}")
            entry = shape.dim.add()
            if number is not None and number >= 0:
                entry.dim_value = number
        proto.tensor_type.shape.SetInParent()
        return proto

    def _bound(self, size: ir.SymbolicDim, unnamed: str) -> int | None:
        if size.value is None:
            return self.dimensions.get(unnamed)
        if size.value in self.dimensions:
            return self.dimensions[size.value]
        try:
            number = size.evaluate(self.dimensions)
        except (ValueError, TypeError, AttributeError):
            return None
        return number if isinstance(number, int) else None

    def _small(self, values: Iterable[ir.Value], limit: int) -> bool:
        shapes = [self.shape(value) for value in values]
        return all(shape is not None and int(np.prod(shape, dtype=np.int64)) <= limit for shape in shapes)

    @staticmethod
    def _has_graph(node: ir.Node) -> bool:
        return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())

    @staticmethod
    def _proto(node: ir.Node) -> onnx.NodeProto:
        # Names are made by position, so that nothing depends on what the exporter called things.
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        proto.input.extend("" if value is None else f"i{i}" for i, value in enumerate(node.inputs))
        proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
        for attribute in node.attributes.values():
            if not attribute.is_ref() and attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                proto.attribute.append(ir.serde.serialize_attribute(attribute))
        return proto


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _merge(inferred: onnx.TypeProto | None, declared: onnx.TypeProto) -> onnx.TypeProto:
    """Fill what inference left open with what the file declares."""
    if inferred is None or not inferred.WhichOneof("value"):
        return declared
    if not inferred.HasField("tensor_type") or not declared.HasField("tensor_type"):
        return inferred
    if not inferred.tensor_type.HasField("shape"):
        if declared.tensor_type.HasField("shape"):
            inferred.tensor_type.shape.CopyFrom(declared.tensor_type.shape)
        return inferred
    ours, theirs = inferred.tensor_type.shape.dim, declared.tensor_type.shape.dim
    if len(ours) == len(theirs):
        for mine, other in zip(ours, theirs, strict=True):
            if not mine.HasField("dim_value") and other.HasField("dim_value"):
                mine.dim_value = other.dim_value
    return inferred
