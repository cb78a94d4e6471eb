"""What the caches of a block's keys and values are to the rest of the graph, and how they go."""

from collections.abc import Collection, Iterable

import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith.graph.cache import Cache, caches_of
from edgesmith.graph.dataflow import CARRYING, MOVING
from edgesmith.graph.edit import GraphEditor

_SIZES = frozenset({"Shape", "Size"})


def caches_within(caches: Iterable[Cache], nodes: Collection[ir.Node]) -> tuple[Cache, ...]:
    """Return those caches that are joined with what these nodes make, and by nothing else."""
    return tuple(cache for cache in caches if cache.joins and cache.joins <= set(nodes))


def obstacle_of(cache: Cache, nodes: Collection[ir.Node], caches: Collection[Cache]) -> str:
    """Return why a cache cannot go with its nodes; empty where it can.

    Others may read how long it is, since every cache of the same form is as long.

    Args:
        cache: The cache.
        nodes: What goes.
        caches: All caches of the graph.
    """
    pending, sizes = [cache.input], False
    while pending:
        for node, _ in pending.pop().uses():
            if node in nodes or node in cache.behind:
                continue
            if node.op_type in _SIZES:
                sizes = True
            elif node.op_type in CARRYING | MOVING:
                pending.extend(node.outputs)
            else:
                return f"its cache {cache.input.name} is read outside of it"
    if sizes and not any(_form(other.input) == _form(cache.input) for other in caches if other is not cache):
        return f"the length of its cache {cache.input.name} is read outside of it, and no other cache tells it"
    return ""


def drop_cache(editor: GraphEditor, cache: Cache, nodes: Iterable[ir.Node]) -> None:
    """Take a cache out of the graph: its output, the nodes that made it, and its input.

    Args:
        editor: Edits the graph.
        cache: The cache; nobody reads the result of its nodes any more.
        nodes: The nodes that made it.

    Raises:
        StepError: The graph reads the length of the cache, and there is no other one that tells it.
    """
    graph, value = editor.graph, cache.input
    graph.outputs.remove(cache.output)
    editor.remove_unused([*nodes, *cache.behind])
    if value.uses():
        others = (other.input for other in caches_of(graph) if other.input is not value)
        other = next((each for each in others if _form(each) == _form(value)), None)
        if other is None:
            raise StepError(
                f"the length of the cache {value.name} is read outside of the blocks that go",
                expected="another block that keeps a cache of the same form",
                why="positions and masks follow from the length of a cache",
                fix="keep one block more",
            )
        for node, index in tuple(value.uses()):
            node.replace_input_with(index, other)
    graph.inputs.remove(value)


def _form(value: ir.Value) -> tuple[object, ...]:
    shape = value.shape or ()
    return value.dtype, len(shape), *(size if isinstance(size, int) else None for size in shape)
