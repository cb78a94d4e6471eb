"""Operators that ONNX Runtime's optimizer writes for the processor it runs on: their weights are laid out for that."""

from collections.abc import Iterator

from edgesmith.graph.node_names import node_name
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith.serialization import PROCESSOR_DOMAINS


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for all operators that ONNX Runtime loads on one kind of processor, and nothing else loads."""
    nodes = [node for node in model.graph.all_nodes() if node.domain in PROCESSOR_DOMAINS]
    if nodes:
        domains = ", ".join(sorted({node.domain for node in nodes}))
        yield Finding(
            f"Operators of {domains} were written by ONNX Runtime's optimizer for the processor it ran on; another "
            "processor may not load them, and no other runtime knows them.",
            "Export the model again, or save it with the optimizer at level EXTENDED or below.",
            tuple(node_name(node) for node in nodes),
        )
