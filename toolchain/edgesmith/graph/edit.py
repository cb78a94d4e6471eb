"""Small edits of an ONNX graph: read constants, insert nodes, replace uses, make unique names.

Everything here edits the graph it is given, so a method clones its model first (`Model.clone`). Two rules hold
after every edit: the graph's inputs and outputs keep their names and order, and each node still stands behind the
producers of its inputs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.mapped import WeightFile

Array = NDArray[Any]
Attribute = int | float | str | Sequence[int] | Sequence[float] | Sequence[str] | ir.TensorProtocol | ir.Graph

# A Constant node can hold its value under one of these names besides "value".
_CONSTANT_TYPES = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def constant_tensor(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor behind a value that never changes, or None.

    A value is constant when it is an initializer, when a Constant node makes it, or when only Identity nodes stand
    between it and one of these. Old files list each initializer among the graph's inputs too; those count as constant.
    Nothing is read from disk until the tensor's `numpy()` is called.
    """
    while value is not None:
        node = value.producer()
        if node is None:
            return value.const_value
        if node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Constant":
            return _constant_node_tensor(node)
        if node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None


def constant_value(value: ir.Value | None) -> Array | None:
    """Return the array behind a value that never changes, or None (see `constant_tensor`)."""
    tensor = constant_tensor(value)
    return None if tensor is None else tensor.numpy()


def constant_scalar(value: ir.Value | None) -> float | None:
    """Return a constant that holds exactly one number, or None. The rank does not matter."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(()))


def _constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            return None
        if name == "value":
            return attribute.as_tensor()
        if name in _CONSTANT_TYPES:
            return ir.tensor(np.asarray(attribute.value, _CONSTANT_TYPES[name]))
    return None


def set_initializer(value: ir.Value, array: Array | ir.TensorProtocol, dtype: ir.DataType | None = None) -> None:
    """Give an initializer new data; its shape and type follow. Every consumer sees the change."""
    _describe(value, _stored(array, dtype))


def remove_unread_initializers(model: ir.Model) -> None:
    """Remove initializers that no node reads and that are no inputs or outputs, in subgraphs too."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del graph.initializers[name]


class GraphEditor:
    """Edits one graph and its subgraphs, with names that are unique in all of them.

    Args:
        graph: The main graph of a cloned model.
        weights: Takes large new constants to disk. By default they stay in memory.
    """

    def __init__(self, graph: ir.Graph, *, weights: WeightFile | None = None) -> None:
        self.graph = graph
        self._weights = weights
        self._value_names: set[str] = set()
        self._node_names: set[str] = set()
        for each in (graph, *graph.subgraphs()):
            values = [*each.inputs, *each.initializers.values()]
            for node in each:
                values.extend(node.outputs)
                self._node_names.add(node.name or "")
            self._value_names.update(value.name for value in values if value.name)

    def value_name(self, base: str) -> str:
        """Return an unused value name, `base` itself when it is free, and take it."""
        return _take(base, self._value_names)

    def node_name(self, base: str) -> str:
        """Return an unused node name, `base` itself when it is free, and take it."""
        return _take(base, self._node_names)

    def add_initializer(
        self, name: str, array: Array | ir.TensorProtocol, dtype: ir.DataType | None = None
    ) -> ir.Value:
        """Add a constant to the graph and return its value.

        Args:
            name: Wished name; a number is appended when it is taken.
            array: The data. `ml_dtypes` arrays (int4, float8, bfloat16) keep their type.
            dtype: Stored type, when NumPy's type does not say it.
        """
        value = ir.Value(name=self.value_name(name))
        tensor = _stored(array, dtype)
        _describe(value, tensor if self._weights is None else self._weights.keep(tensor))
        self.graph.register_initializer(value)
        return value

    def insert_before(
        self,
        node: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """Add a node directly before another one and return it. Nobody uses its outputs yet.

        Args:
            node: The node that the new one stands before, in whichever graph that is.
            op_type: Operator type.
            inputs: Input values; None for an input left out.
            attributes: Attribute values by name.
            domain: Operator domain; empty for ONNX itself.
            name: Wished name of the node and stem of its outputs' names; made from the operator by default.
            outputs: Number of outputs.
        """
        new = self._make(op_type, inputs, attributes, domain, name, outputs)
        _owner(node).insert_before(node, new)
        return new

    def insert_after(
        self,
        value: ir.Value,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """Add a node as early as a value exists and return it. Nobody uses its outputs yet.

        The other inputs must exist there too. Arguments are those of `insert_before`, except that `value` says where:
        behind its producer, or at the graph's start when it is an input or an initializer.
        """
        new = self._make(op_type, inputs, attributes, domain, name, outputs)
        producer = value.producer()
        if producer is not None:
            _owner(producer).insert_after(producer, new)
            return new
        graph = value.graph if isinstance(value.graph, ir.Graph) else self.graph
        if len(graph):
            graph.insert_before(graph[0], new)
        else:
            graph.append(new)
        return new

    def replace_uses(self, old: ir.Value, new: ir.Value, *, keep: Collection[ir.Node] = ()) -> None:
        """Let every consumer of `old` read `new` instead, also in subgraphs. `new` must exist before all of them.

        Where `old` is an output of its graph, `new` takes its place and its name, so that callers notice nothing.
        An input that is passed straight through as an output stays both.

        Args:
            old: The value to replace.
            new: The value to read from now on.
            keep: Consumers that go on reading `old`, such as the node that makes `new` from it.
        """
        for node, index in tuple(old.uses()):
            if node not in keep:
                node.replace_input_with(index, new)
        if old.is_graph_output() and not old.is_graph_input():
            self._replace_output(old, new)

    def insert_on_uses(
        self,
        value: ir.Value,
        op_type: str,
        inputs: Sequence[ir.Value] = (),
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str | None = None,
    ) -> ir.Node:
        """Put a node with one output between a value and all that read it; return the node.

        Args:
            value: Becomes the first input of the new node.
            op_type: Operator type.
            inputs: Further inputs.
            attributes: Attribute values by name.
            domain: Operator domain.
            name: Wished name of the node.
        """
        node = self.insert_after(value, op_type, (value, *inputs), attributes, domain=domain, name=name)
        node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
        self.replace_uses(value, node.outputs[0], keep=(node,))
        return node

    def bypass(self, node: ir.Node, *, index: int = 0) -> None:
        """Remove a node with one output; what read it reads its input number `index` instead."""
        source = node.inputs[index] if index < len(node.inputs) else None
        if source is None or len(node.outputs) != 1:
            raise _misuse(
                f"the node {node.name} ({node.op_type}) has {len(node.outputs)} outputs or no input {index}",
                "one output, and an input to take its place",
            )
        self.replace_uses(node.outputs[0], source)
        _owner(node).remove(node, safe=True)

    def take_over(self, node: ir.Node, result: ir.Value) -> None:
        """Let `result` stand for the only output of `node`, with its name, shape and type, and remove `node`.

        Args:
            node: What is replaced, and what only it reads.
            result: A value of the same numbers; it keeps a type of its own where the output has none.
        """
        output = node.outputs[0]
        result.shape, result.type = output.shape, output.type or result.type
        is_output, name = output.is_graph_output(), output.name
        self.replace_uses(output, result)
        self.remove_unused((node,))
        if not is_output:
            result.name = name

    def remove_unused(self, nodes: Iterable[ir.Node]) -> None:
        """Remove those of the nodes, and of what only they read, that nobody needs any more."""
        pending = list(nodes)
        while pending:
            node = pending.pop()
            if node.graph is None or any(output.uses() or output.is_graph_output() for output in node.outputs):
                continue
            sources = [value for value in node.inputs if value is not None]
            _owner(node).remove(node, safe=True)
            pending.extend(producer for value in sources if (producer := value.producer()) is not None)
            for value in sources:
                self._drop_initializer(value)

    def _make(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Attribute] | None,
        domain: str,
        name: str | None,
        outputs: int,
    ) -> ir.Node:
        name = self.node_name(name or op_type)
        made = [ir.Value(name=self.value_name(f"{name}_output_{i}" if i else f"{name}_output")) for i in range(outputs)]
        present = {key: value for key, value in (attributes or {}).items() if value is not None}
        return ir.Node(domain, op_type, inputs, ir.convenience.convert_attributes(present), outputs=made, name=name)

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        graph = old.graph
        if graph is None:
            raise _misuse(f"the output {old.name} belongs to no graph", "an output of the graph that is edited")
        places = [index for index, output in enumerate(graph.outputs) if output is old]
        if new.is_graph_input() or new.is_initializer() or new.is_graph_output() or new.graph is not graph:
            # Such a value has a name of its own to keep, so the output gets a node of its own.
            new = self._make("Identity", (new,), None, "", None, 1).outputs[0]
            producer = new.producer()
            if producer is not None:
                graph.append(producer)
        if new.shape is None:
            new.shape = old.shape
        if new.type is None:
            new.type = old.type
        name = old.name
        for index in places:
            graph.outputs[index] = new
        old.name = self.value_name(f"{name}_inner")
        new.name = name

    def _drop_initializer(self, value: ir.Value) -> None:
        if value.is_initializer() and not value.is_graph_input() and not value.uses() and not value.is_graph_output():
            graph = value.graph
            if isinstance(graph, ir.Graph) and value.name is not None:
                graph.initializers.pop(value.name)


def _owner(node: ir.Node) -> ir.Graph | ir.Function:
    if node.graph is None:
        raise _misuse(f"the node {node.name} ({node.op_type}) is in no graph", "a node of the graph that is edited")
    return node.graph


def _stored(array: Array | ir.TensorProtocol, dtype: ir.DataType | None) -> ir.TensorProtocol:
    # Asked first: whether something has all members of a protocol takes longer than making the tensor.
    if isinstance(array, np.ndarray):
        return ir.Tensor(array, dtype=dtype)
    return array if isinstance(array, ir.TensorProtocol) else ir.tensor(array, dtype=dtype)


def _describe(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    value.const_value = tensor
    value.shape, value.type = ir.Shape(list(tensor.shape.numpy())), ir.TensorType(tensor.dtype)


def _misuse(what: str, expected: str) -> ModelError:
    return ModelError(
        what,
        expected=expected,
        why="An edit that the graph cannot take would leave it broken.",
        fix="Report this to the author of the method that edits the graph.",
    )


def _take(base: str, names: set[str]) -> str:
    name, number = base, 1
    while name in names:
        name, number = f"{base}_{number}", number + 1
    names.add(name)
    return name
