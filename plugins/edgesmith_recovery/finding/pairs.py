"""Which values of a changed graph answer which of the source's: block outputs, matched by structure."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.structure import Structure


@dataclass(frozen=True, slots=True)
class Pair:
    """A value of the student and the value of the teacher that it should equal."""

    student: str
    teacher: str


def block_pairs(
    student: Structure, teacher: Structure, student_graph: ir.Graph, teacher_graph: ir.Graph
) -> tuple[Pair, ...]:
    """Return the outputs of the student's blocks with those of the blocks that they came from.

    With as many blocks as before, blocks are matched in order. Where some were removed, those that are left still bear
    the names of values that they came from; where names tell nothing, the last blocks are matched from the end. Pairs
    whose values have other channels, or another number of tokens, are left out.
    """
    ours = [block.output for block in student.blocks]
    theirs = [block.output for block in teacher.blocks]
    widths = _widths(student), _widths(teacher)
    found: Sequence[tuple[str, str]]
    if len(ours) == len(theirs):
        found = list(zip(ours, theirs, strict=True))
    elif set(ours) <= set(theirs):
        found = [(name, name) for name in ours]
    else:
        count = min(len(ours), len(theirs))
        found = list(zip(ours[len(ours) - count :], theirs[len(theirs) - count :], strict=True))
    # A stream whose own width was pruned has other channels, and one whose tokens were merged other tokens: neither can
    # be compared one by one.
    shapes = _shapes(student_graph), _shapes(teacher_graph)
    return tuple(
        Pair(a, b)
        for a, b in found
        if widths[0].get(a) == widths[1].get(b) and _alike(shapes[0].get(a), shapes[1].get(b))
    )


def _widths(structure: Structure) -> dict[str, int | None]:
    return {block.output: stream.width for stream in structure.streams for block in stream.blocks}


def _shapes(graph: ir.Graph) -> dict[str, ir.Shape | None]:
    return {value.name or "": value.shape for node in graph for value in node.outputs}


def _alike(first: ir.Shape | None, second: ir.Shape | None) -> bool:
    """Whether two values may have the same shape: no size is known to differ."""
    if first is None or second is None:
        return True
    sizes = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b for a, b in sizes if isinstance(a, int) and isinstance(b, int))
