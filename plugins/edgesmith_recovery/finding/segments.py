"""Cuts a piece out of a graph: from one value to another, with whatever else the second depends on."""

import onnx_ir as ir


def cut(model: ir.Model, start: str | None, end: str) -> ir.Model:
    """Return the part of a graph that computes `end` from the graph's inputs and, as another input, from `start`.

    What `end` needs besides `start`, such as masks and positions, is computed from the graph's own inputs again.
    Weights are the same tensors. Inputs that the part does not need are left out.

    Args:
        model: The graph. Never changed.
        start: A value of the main graph that is given; None to begin at the inputs.
        end: The value of the main graph to compute.
    """
    inputs = [value.name or "" for value in model.graph.inputs if not value.is_initializer()]
    if start is not None and start not in inputs:
        inputs.append(start)
    part = ir.convenience.extract(model.graph, inputs=inputs, outputs=[end])
    for value in [value for value in part.inputs if not value.uses() and not value.is_graph_output()]:
        part.inputs.remove(value)
    return ir.Model(part, ir_version=model.ir_version, functions=list(model.functions.values()))
