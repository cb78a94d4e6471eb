"""Outputs of a graph."""

import onnx_ir as ir

from edgesmith.graph.cache import caches_of


def float_outputs(graph: ir.Graph) -> tuple[str, ...]:
    """Return the names of outputs that can be compared by their distance; class numbers, for instance, cannot."""
    return tuple(each.name or "" for each in graph.outputs if each.dtype is not None and each.dtype.is_floating_point())


def passed_over(graph: ir.Graph) -> frozenset[str]:
    """Return the float outputs that tell nothing more: keys and values for a cache, beside what the graph answers.

    A decoder that hands out the chosen token instead of logits has no other float output, so there they tell all.
    """
    slots = frozenset(cache.output.name or "" for cache in caches_of(graph))
    return slots if set(float_outputs(graph)) - slots else frozenset()
