"""Gives layers a bias for each output, so that what removed channels held on average has somewhere to go."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_scalar, constant_value, remove_unread_initializers

_OWN_INPUT = {"Gemm": 2, "Conv": 2}


def add_biases(model: ir.Model, layers: Collection[tuple[str, int]]) -> dict[str, str]:
    """Give layers a bias of zeros and return its name by layer. The model is changed, its values stay as they are.

    Where a Gemm adds one number to all outputs, the bias holds that number for each.

    Args:
        model: A graph that may be edited.
        layers: First output and number of outputs of each MatMul, Gemm or Conv.
    """
    editor = GraphEditor(model.graph)
    nodes = {node.outputs[0].name: node for node in model.graph}
    added = {}
    for reader, outputs in layers:
        node = nodes[reader]
        port = _OWN_INPUT.get(node.op_type)
        start = 0.0
        if port is not None and len(node.inputs) > port and node.inputs[port] is not None:
            number = constant_scalar(node.inputs[port])
            if number is None or outputs == 1:
                continue
            start = number
        dtype = node.outputs[0].dtype or ir.DataType.FLOAT
        bias = editor.add_initializer(f"{reader}_bias", np.full(outputs, start, dtype.numpy()), dtype)
        if port is None:
            editor.insert_on_uses(node.outputs[0], "Add", [bias], name=f"{reader}_add_bias")
        else:
            node.resize_inputs(port + 1)
            node.replace_input_with(port, bias)
        added[reader] = str(bias.name)
    remove_unread_initializers(model)
    return added


def drop_zero_biases(model: ir.Model, added: Collection[str]) -> None:
    """Take out those of the added biases that are zero still."""
    editor = GraphEditor(model.graph)
    for node in tuple(model.graph):
        for port, value in enumerate(node.inputs):
            if value is None or value.name not in added or np.any(constant_value(value)):
                continue
            if node.op_type == "Add":
                editor.bypass(node, index=1 - port)
            else:
                node.resize_inputs(port)
            model.graph.initializers.pop(str(value.name))
            break
