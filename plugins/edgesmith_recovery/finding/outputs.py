"""Which outputs of a graph are compared with those of its source."""

import onnx_ir as ir

from edgesmith.graph.outputs import float_outputs, passed_over
from edgesmith.graph.structure import Structure


def compared_outputs(graph: ir.Graph, *, caches: bool = False) -> tuple[str, ...]:
    """Return the float outputs to compare, in the order of the graph.

    Keys and values for a cache are left out where another float output says what the graph answers. A decoder that
    hands out the chosen token instead of logits has no other, so they count there.

    Args:
        graph: The model; its source has all of its outputs.
        caches: Whether keys and values count, too.
    """
    slots = frozenset[str]() if caches else passed_over(graph)
    return tuple(name for name in float_outputs(graph) if name not in slots)


def logits_of(structure: Structure) -> tuple[str, ...]:
    """Return the outputs that hold one number for each of several classes."""
    return tuple(head.output for head in structure.heads if head.kind != "dense" and head.classes > 1)
