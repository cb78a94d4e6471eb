"""Gives layers a bias of zeros, so that what removed channels held on average has somewhere to go."""

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor, constant_value

_OWN_INPUT = {"Gemm": 2, "Conv": 2}


def add_biases(model: ir.Model, layers: Collection[tuple[str, int]]) -> dict[str, str]:
    """Give layers a bias of zeros and return its name by layer. The model is changed, its values stay as they are.

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
        if port is not None and len(node.inputs) > port and node.inputs[port] is not None:
            continue
        dtype = node.outputs[0].dtype or ir.DataType.FLOAT
        zeros = editor.add_initializer(f"{reader}_bias", np.zeros(outputs, dtype.numpy()), dtype)
        if port is None:
            editor.insert_on_uses(node.outputs[0], "Add", [zeros], name=f"{reader}_add_bias")
        else:
            node.resize_inputs(port + 1)
            node.replace_input_with(port, zeros)
        added[reader] = str(zeros.name)
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
