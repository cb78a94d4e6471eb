"""Codes must be symmetric: TensorRT's parser rejects a zero point other than 0."""

from collections.abc import Iterator

from edgesmith.graph.edit import constant_value
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_tensorrt.lints.reading import PAIRS, name_of, nodes_of


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for pairs whose zero point is not 0, where the dialect is symmetric."""
    if not dialect.activation.symmetric:
        return
    wrong = []
    for node in nodes_of(model.ir, *PAIRS):
        if len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        zero_point = constant_value(node.inputs[2])
        if zero_point is None or zero_point.astype("float32").any():
            wrong.append(name_of(node))
    if wrong:
        yield Finding(
            f"Zero points are not 0, and {dialect.name} takes symmetric codes only.",
            "Quantize again for this target: its dialect is symmetric.",
            tuple(wrong),
        )
