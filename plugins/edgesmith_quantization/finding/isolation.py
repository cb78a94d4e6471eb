"""Leaves convolutions of the input in float whose integer result nobody could use.

Where a runtime runs a convolution in integers only if its output is quantized too, that second rounding is lost
accuracy unless the next operator reads the codes. The patch embedding of a vision transformer is the usual case: less
than a hundredth of the work, at the very start, and behind it a normalization that needs floats.
"""

from collections.abc import Sequence

import onnx_ir as ir

from edgesmith.host.context import Notes
from edgesmith.host.dialect import Dialect
from edgesmith_quantization.finding.candidates import Candidate
from edgesmith_quantization.forms.static_form import place

_PASSING = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Relu", "Clip"})


def without_isolated_convolutions(
    graph: ir.Graph, candidates: Sequence[Candidate], dialect: Dialect, notes: Notes
) -> tuple[Candidate, ...]:
    """Return the candidates without those on an input of the graph whose quantized output only floats would read.

    Convolutions that make an output of the graph stay, and so does everything in a graph with nothing else to quantize.
    Those behind other operators stay too: there they are most of the work, as in networks with smooth activations.

    Args:
        graph: The graph that holds them.
        candidates: All products that could be quantized.
        dialect: Says whose outputs are quantized, and what runs on codes between products.
        notes: Gets the reason of each candidate that is left out.
    """
    nodes = {candidate.node for candidate in candidates} | set(place(graph, candidates, dialect).carried)
    kept = [
        candidate
        for candidate in candidates
        if candidate.node.op_type not in dialect.quantize_outputs
        or not candidate.activation.is_graph_input()
        or _is_used(candidate.bounded_output, nodes)
    ]
    if not kept:
        return tuple(candidates)
    for candidate in candidates:
        if candidate not in kept:
            notes.skip(candidate.name, "its result is read in float only, so integers would round it twice for nothing")
    return tuple(kept)


def _is_used(value: ir.Value, integer_nodes: set[ir.Node]) -> bool:
    """Return whether an operator that runs in integers reads a value, or the graph returns it."""
    if value.is_graph_output():
        return True
    for node, _ in value.uses():
        if node in integer_nodes:
            return True
        if node.op_type in _PASSING and _is_used(node.outputs[0], integer_nodes):
            return True
    return False
