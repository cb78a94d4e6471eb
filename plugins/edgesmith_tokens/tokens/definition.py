"""Writes fused attention in single operators where ONNX defines which: its operator Attention, from opset 23 on."""

from collections.abc import Hashable, Iterator

import onnx.inliner
import onnx_ir as ir
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError

from edgesmith.errors import ModelError
from edgesmith.frontends.normalize import normalize
from edgesmith.graph.edit import GraphEditor

_PLAIN_INPUTS = 4
"""Queries, keys, values and a mask; behind them stand caches and lengths."""


def by_definition(model: ir.Model) -> ir.Model:
    """Return a copy in which ONNX Attention without a cache is written in the operators that define it.

    Operators of runtimes have no such definition and stay, and so does what cannot be run as it is defined. A graph
    without such an operator is returned as it is.

    Args:
        model: The graph. Never changed.
    """
    if not any(_plain_attentions(model.graph)):
        return model
    result = model.clone()
    editor = GraphEditor(result.graph)
    definitions: dict[Hashable, ir.Model | None] = {}
    for node in tuple(_plain_attentions(result.graph)):
        form = _form(node)
        if form not in definitions:
            definitions[form] = _definition(node, result)
        body = definitions[form]
        if body is not None:
            _write(editor, node, body.graph)
    return result


def _plain_attentions(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        inputs = [value for value in node.inputs if value is not None]
        alone = not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
        known = all(value.type is not None and value.shape is not None for value in inputs)
        if alone and known and not any(node.inputs[_PLAIN_INPUTS:]):
            yield node


def _form(node: ir.Node) -> Hashable:
    """Return what two nodes have in common whose definitions are the same."""
    attributes = tuple(sorted((name, str(attribute.value)) for name, attribute in node.attributes.items()))
    inputs = tuple(None if value is None else (str(value.dtype), str(value.shape)) for value in node.inputs)
    return attributes, inputs


def _definition(node: ir.Node, model: ir.Model) -> ir.Model | None:
    """Return a graph of one attention in single operators, with what follows from its sizes computed."""
    inputs = [
        None if value is None else ir.Value(name=f"input{index}", type=value.type, shape=value.shape)
        for index, value in enumerate(node.inputs)
    ]
    output = ir.Value(name="output", type=node.outputs[0].type, shape=node.outputs[0].shape)
    alone = ir.Node("", "Attention", inputs, node.attributes.values(), outputs=[output], name="attention")
    given = [value for value in inputs if value is not None]
    graph = ir.Graph(given, [output], nodes=[alone], opset_imports=model.opset_imports, name="attention")
    proto = ir.to_proto(ir.Model(graph, ir_version=model.ir_version))
    try:
        expanded = onnx.inliner.inline_selected_functions(proto, [("", "Attention")], inline_schema_functions=True)
        body = normalize(ir.from_proto(expanded))
    except (ModelError, RuntimeError, ValidationError, InferenceError):  # the definition does not fit the inputs
        return None
    return None if any(each.op_type == "Attention" for each in body.graph) else body


def _write(editor: GraphEditor, node: ir.Node, body: ir.Graph) -> None:
    outer = [value for value in node.inputs if value is not None]
    made: dict[ir.Value, ir.Value] = dict(zip(body.inputs, outer, strict=True))
    for name, value in body.initializers.items():
        if value.const_value is not None:
            made[value] = editor.add_initializer(f"{node.name}.{name}", value.const_value)
    for each in body:
        inputs = [None if value is None else made[value] for value in each.inputs]
        attributes = {name: attribute.value for name, attribute in each.attributes.items()}
        written = editor.insert_before(
            node,
            each.op_type,
            inputs,
            attributes,
            domain=each.domain,
            name=f"{node.name}.{each.name}",
            outputs=len(each.outputs),
        )
        for old, new in zip(each.outputs, written.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            made[old] = new
    editor.take_over(node, made[body.outputs[0]])
