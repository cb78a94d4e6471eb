"""Each input with an open dimension needs an optimization profile: smallest, usual and largest shape.

Without one, trtexec builds for shapes of 1 wherever a number is missing, and the engine takes no others.
"""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.build_recipe import recorded_shapes
from edgesmith_tensorrt.dialect import TensorRTDialect
from edgesmith_tensorrt.lints.reading import name_of, nodes_of

_DATA_DEPENDENT = ("Compress", "NonMaxSuppression", "NonZero", "Unique")


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield findings for inputs without a profile, and for nodes whose output has a size that the data decides."""
    if not isinstance(dialect, TensorRTDialect):
        return
    recorded = recorded_shapes(model.ir)
    shapes = recorded or {}
    open_inputs = [str(value.name) for value in model.graph.inputs if _is_open(value) and value.name not in shapes]
    if open_inputs:
        yield Finding(
            "Inputs have dimensions without a number and no optimization profile; trtexec would build for size 1.",
            "Expected of a source: `edgesmith compile` writes the shapes to build.json. Where trtexec builds from this "
            "very file, give it --minShapes, --optShapes and --maxShapes.",
            tuple(open_inputs),
            is_note=recorded is None,
        )
    unranked = [str(value.name) for value in model.graph.inputs if value.shape is None]
    if unranked:
        yield Finding("Inputs have no known number of dimensions.", "Export the model with shapes.", tuple(unranked))
    wrong = [str(value.name) for value in model.graph.inputs if value.name in shapes and not _fits(value, shapes)]
    if wrong:
        yield Finding(
            "Optimization profiles do not fit their inputs: another rank or size, or not smallest <= usual <= largest.",
            "Compile again, or correct the shapes in build.json.",
            tuple(wrong),
        )
    dependent = [name_of(node) for node in nodes_of(model.ir, *_DATA_DEPENDENT)]
    if dependent:
        yield Finding(
            "The data decides the size of outputs, so the engine reserves the largest and takes no CUDA graph.",
            "Keep a fixed number of results, such as TopK with a constant.",
            tuple(dependent),
        )


def _is_open(value: ir.Value) -> bool:
    return value.shape is not None and not all(isinstance(size, int) for size in value.shape)


def _fits(value: ir.Value, shapes: dict[str, dict[str, list[int]]]) -> bool:
    each = shapes[str(value.name)]
    bounds = [each[bound] for bound in ("min", "opt", "max")]
    if value.shape is None or any(len(bound) != len(value.shape) for bound in bounds):
        return False
    for size, low, usual, high in zip(value.shape, *bounds, strict=True):
        if not low <= usual <= high or (isinstance(size, int) and {low, usual, high} != {size}):
            return False
    return True
