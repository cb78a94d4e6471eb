"""What keeps a graph, or parts of it, off Qualcomm's tensor processor."""

from collections.abc import Iterator

import onnx_ir as ir

from edgesmith.frontends.fixed_dimensions import open_dimensions
from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.node_names import node_name
from edgesmith.host.dialect import Dialect
from edgesmith.host.lint import Finding
from edgesmith.model import Model
from edgesmith_onnxruntime.qnn.operators import SUPPORTED, obstacle


def find(model: Model, dialect: Dialect) -> Iterator[Finding]:
    """Yield a finding for open sizes, each operator that is not taken, and weights that the processor dequantizes."""
    names = open_dimensions(model.ir)
    if names:
        yield Finding(
            f"The dimensions {', '.join(names)} of the inputs are open, and QNN plans for fixed sizes.",
            f"Compile with {' '.join(f'--shape {name}=SIZE' for name in names)}.",
            tuple(dict.fromkeys(name for name, _ in names.values())),
        )
    yield from _operators(model.ir)
    loose = [
        node_name(node) for node in model.graph.all_nodes() if _dequantizes_weight(node) and not _all_quantized(node)
    ]
    if loose:
        yield Finding(
            f"{len(loose)} weights are dequantized on the processor at every run, since their products have float "
            "outputs or inputs.",
            "Quantize inputs and outputs of these products too (quantize-int8 does), or leave them in float.",
            tuple(loose),
        )
    many = [node_name(node) for node in model.graph.all_nodes() if _rank(node) > _HIGHEST_RANK]
    if many:
        yield Finding(
            f"{len(many)} nodes have values of more than {_HIGHEST_RANK} dimensions.",
            "Export the model with fewer dimensions.",
            tuple(many),
        )


_HIGHEST_RANK = 5


def _operators(model: ir.Model) -> Iterator[Finding]:
    absent: dict[str, list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for node in model.graph.all_nodes():
        refusal = obstacle(node)
        if refusal is not None:
            refused.setdefault(refusal, []).append(node_name(node))
        elif node.domain != "" or node.op_type not in SUPPORTED:
            absent.setdefault(node.op_type, []).append(node_name(node))
    for (reason, remedy), nodes in sorted(refused.items()):
        fix = f"Nothing is compiled until you {remedy}."
        yield Finding(f"{reason} ({len(nodes)} nodes).", fix, tuple(nodes))
    for operator, nodes in sorted(absent.items()):
        yield Finding(
            f"{operator} ({len(nodes)}) is not among the operators of QNN and stays on the processor.",
            "Little work there costs little; much of it is better compiled for android-cpu.",
            tuple(nodes),
        )


def _dequantizes_weight(node: ir.Node) -> bool:
    return node.op_type == "DequantizeLinear" and constant_tensor(node.inputs[0]) is not None


def _all_quantized(dequantize: ir.Node) -> bool:
    """Return whether all products with a weight have quantized inputs and outputs only."""
    for product, _ in dequantize.outputs[0].uses():
        inputs = [value.producer() for value in product.inputs if value is not None]
        if any(producer is None or producer.op_type != "DequantizeLinear" for producer in inputs):
            return False
        output = product.outputs[0]
        readers = [reader for reader, _ in output.uses()]
        if output.is_graph_output() or not readers:
            return False
        if any(reader.op_type not in _BOUNDS for reader in readers):
            return False
    return True


_BOUNDS = frozenset({"QuantizeLinear", "Relu", "Clip"})
"""What may stand between a product and the codes of its output: a bound that codes saturate at."""


def _rank(node: ir.Node) -> int:
    return max((len(value.shape) for value in node.outputs if value.shape is not None), default=0)
