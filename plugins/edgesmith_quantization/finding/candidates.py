"""Finds the products of a graph that can be quantized, and says why the others cannot."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import constant_scalar, constant_tensor
from edgesmith.graph.kept import kept
from edgesmith.graph.node_names import node_name
from edgesmith.graph.quantized import already_quantized, quantized_product
from edgesmith.host.context import Notes
from edgesmith.host.dialect import Dialect
from edgesmith.mapped import release
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.step_errors import first_reasons

_WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A product of an activation and a constant weight, with what quantization needs to know of it."""

    node: ir.Node
    activation: ir.Value
    weight: ir.Value
    channel_axis: int
    """Dimension of the weight that belongs to the output channels."""
    bias: ir.Value | None
    transposed: bool = False
    """Whether the product reads the weight through a Transpose, as heads do that share the embedding table."""

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return node_name(self.node)

    @property
    def bounded_output(self) -> ir.Value:
        """The output, behind a Relu or a Clip around 0 that is its only reader: codes that saturate absorb these."""
        return bounded_output(self.node)


def bounded_output(node: ir.Node) -> ir.Value:
    """Return the first output, behind a Relu or a Clip around 0 that is its only reader."""
    output = node.outputs[0]
    uses = tuple(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].idx != 0:
        return output
    reader = uses[0].node
    return reader.outputs[0] if _clips_around_zero(reader) else output


def _clips_around_zero(node: ir.Node) -> bool:
    """Return whether a node bounds values at constants on both sides of 0, so that its output's range says all."""
    if node.domain != "" or node.op_type not in ("Relu", "Clip"):
        return False
    bounds = [constant_scalar(value) if value is not None else 0.0 for value in node.inputs[1:3]]
    signs = (-1, 1)[: len(bounds)]
    return all(bound is not None and bound * sign >= 0 for bound, sign in zip(bounds, signs, strict=True))


def find_candidates(
    graph: ir.Graph, dialect: Dialect, options: QuantizeInt8Options, notes: Notes
) -> tuple[Candidate, ...]:
    """Return what can be quantized, in graph order; every product left alone gets its reason in `notes`."""
    found = []
    for node in graph:
        if node.op_type not in _WEIGHTED or node.domain != "":
            continue
        reason = _obstacle(node, dialect, options)
        if reason:
            notes.skip(node_name(node), reason)
        else:
            found.append(_describe(node))
    for node in _inner_nodes(graph):
        if node.op_type in _WEIGHTED and node.domain == "":
            notes.skip(node_name(node), "stands in the body of a control-flow operator")
    return tuple(found)


def why_none(graph: ir.Graph, notes: Notes) -> str:
    """Return why nothing was found: the reasons of the first nodes, or what the graph is."""
    quantized = any(quantized_product(node) is not None for node in graph)
    return first_reasons(notes, "its products are quantized already" if quantized else "the graph has none")


def _inner_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for body in graph.subgraphs():
        yield from body


def _obstacle(node: ir.Node, dialect: Dialect, options: QuantizeInt8Options) -> str:
    """Return why `node` stays as it is, or an empty string."""
    unselected = options.obstacle(node_name(node)) or kept(node)
    if unselected:
        return unselected
    if node.op_type == "ConvTranspose":
        return "no method quantizes ConvTranspose; it stays in float"
    if node.op_type not in dialect.operators:
        return f"{node.op_type} does not run in integers on {dialect.name}"
    if node.op_type not in options.operators:
        return f"{node.op_type} is not among the option operators"
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None:
        return "an input is missing"
    quantized = already_quantized(node)
    if quantized:
        return quantized
    if constant_tensor(activation) is not None:
        return "its first input is constant; weights must be the second"
    tensor = constant_tensor(_behind_transpose(weight))
    if tensor is None:
        return "both inputs are activations"
    if tensor.dtype == ir.DataType.FLOAT16:
        return "its weight is FLOAT16, not FLOAT; quantize-weights takes such weights"
    if tensor.dtype != ir.DataType.FLOAT:
        return f"its weight is {tensor.dtype.name}, not FLOAT"
    if 0 in tensor.shape.numpy():
        return "its weight is empty"
    finite = np.isfinite(tensor.numpy()).all()
    release(tensor)
    if not finite:
        return "its weight holds NaN or infinity"
    return _form_obstacle(node, tensor)


def _form_obstacle(node: ir.Node, weight: ir.TensorProtocol) -> str:
    rank = len(weight.shape)
    if node.op_type == "MatMul":
        return "" if rank == 2 else f"its weight has {rank} dimensions; 2 run in integers"
    if node.op_type == "Conv":
        return _bias_obstacle(node, int(weight.shape.numpy()[0]))
    if _attribute(node, "transA", 0):
        return "its activation is transposed (transA)"
    if _attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "beta", 1.0) != 1.0:
        return "it scales its product or bias (alpha, beta)"
    channels = weight.shape.numpy()[0 if _attribute(node, "transB", 0) else 1]
    return _bias_obstacle(node, int(channels))


def _bias_obstacle(node: ir.Node, channels: int) -> str:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return ""
    tensor = constant_tensor(bias)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tuple(tensor.shape.numpy()) != (channels,):
        return "its bias is not a constant with one number per output channel"
    return ""


def _describe(node: ir.Node) -> Candidate:
    activation, weight = node.inputs[0], node.inputs[1]
    if activation is None or weight is None:  # excluded by _obstacle
        raise ValueError(node_name(node))
    source = _behind_transpose(weight)
    transposed = source is not weight
    channels_first = transposed or node.op_type == "Conv" or bool(_attribute(node, "transB", 0))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Candidate(node, activation, source, 0 if channels_first else 1, bias, transposed)


def _behind_transpose(weight: ir.Value) -> ir.Value:
    """Return the 2-D constant that a MatMul reads transposed, or `weight` itself."""
    node = weight.producer()
    if node is None or node.op_type != "Transpose" or node.inputs[0] is None:
        return weight
    tensor = constant_tensor(node.inputs[0])
    readers = {use.node.op_type for use in weight.uses()}
    return node.inputs[0] if tensor is not None and len(tensor.shape) == 2 and readers == {"MatMul"} else weight


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
