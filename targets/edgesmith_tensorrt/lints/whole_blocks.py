"""Rows must be divided into blocks of one length: the parser takes the length from the shapes of weight and scales."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import PAIRS, name_of, nodes_of


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for all pairs whose last block is shorter, where the dialect takes whole blocks only."""
    if not any(form.whole_blocks for form in dialect.weight_only):
        return
    nodes = tuple(name_of(node) for node in nodes_of(model.ir, *PAIRS) if has_partial_block(node))
    if nodes:
        yield Finding(
            "The last block of a row is shorter than the others, and all blocks would be read with another length: the "
            "weights would be wrong, or the parser rejects them.",
            "Choose a block size that divides the inputs of these weights, or leave them in float (option skip).",
            nodes,
        )


def has_partial_block(node: ir.Node) -> bool:
    """Return whether a pair's node has blocks that do not divide the axis they lie along."""
    size, axis = node.attributes.get_int("block_size", 0), node.attributes.get_int("axis", 1)
    shape = node.inputs[0].shape if node.inputs and node.inputs[0] is not None else None
    if not size or shape is None or not -len(shape) <= axis < len(shape):
        return False
    length = shape[axis]
    return isinstance(length, int) and length % size != 0
