"""Takes blocks out of a graph."""

from collections.abc import Sequence

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor
from edgesmith_folding.finding.caches import drop_cache
from edgesmith_folding.finding.places import Place


def remove_run(graph: ir.Graph, run: Sequence[Place], result: ir.Value | None = None) -> None:
    """Remove a run of blocks: what read its output reads its input, or `result`, from now on.

    Caches of their keys and values go with them, inputs and outputs.

    Args:
        graph: The graph to change; the blocks were found in it.
        run: Blocks of which each reads what the one before gives.
        result: A value that stands for the run's output.

    Raises:
        StepError: The graph needs the length of their caches, and no block that stays has one.
    """
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    source, target = values[run[0].block.input], values[run[-1].block.output]
    editor = GraphEditor(graph)
    editor.replace_uses(target, source if result is None else result)
    editor.remove_unused([node for place in run for node in place.nodes if node.graph is not None])
    for place in run:
        for cache in place.caches:
            drop_cache(editor, cache, [node for node in place.nodes if node.graph is not None])
