"""Which outputs of a graph are compared with those of its source."""

import onnx_ir as ir

from edgesmith.graph.cache import caches_of
from edgesmith.graph.outputs import float_outputs
from edgesmith.graph.structure import Structure


def compared_outputs(graph: ir.Graph, *, caches: bool = False) -> tuple[str, ...]:
    """Return the float outputs to compare, in the order of the graph.

    Keys and values for a cache are left out where another float output says what the graph answers. A decoder that
    hands out the chosen token instead of logits has no other, so they count there.

    Args:
        graph: The model; its source has all of its outputs.
        caches: Whether keys and values count, too.
    """
    floats = float_outputs(graph)
    slots = set() if caches else {cache.output.name for cache in caches_of(graph)}
    return tuple(name for name in floats if name not in slots) or floats


def logits_of(structure: Structure) -> tuple[str, ...]:
    """Return the outputs that hold one number for each of several classes."""
    return tuple(head.output for head in structure.heads if head.kind != "dense" and head.classes > 1)
