"""Convolutions, with what directly follows them."""

from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.activation import activation_after
from edgesmith.graph.dataflow import CARRYING, Dataflow
from edgesmith.graph.linear import stored_weight


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution or transposed convolution."""

    node: str
    op_type: str
    weight: str
    """The stored tensor."""
    bias: str | None
    input: str
    output: str
    """Output of the node itself."""
    final: str
    """Value behind batch normalization and activation; the same as `output` without them."""
    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    batch_norm: str | None
    """Name of the BatchNormalization that follows directly, or None."""
    activation: str | None
    """Name of the activation function that follows, or None."""
    nested: bool
    """Whether it stands in a subgraph, such as a branch of an If."""

    @property
    def depthwise(self) -> bool:
        """Whether each input channel is filtered on its own."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def pointwise(self) -> bool:
        """Whether the kernel sees one place at a time."""
        return all(size == 1 for size in self.kernel)

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution (deconvolution)."""
        return self.op_type == "ConvTranspose"


# Operator: position of the weight, and of the bias.
_OPERATORS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "ConvInteger": (1, None),
    "QLinearConv": (3, 8),
    "FusedConv": (1, 2),
    "NhwcConv": (1, 2),
}


def find_convolutions(flow: Dataflow) -> list[Convolution]:
    """Return all convolutions in the order of the data, subgraphs included."""
    found = (_convolution(flow, node) for node in flow.find(*_OPERATORS))
    return [convolution for convolution in found if convolution is not None]


def _convolution(flow: Dataflow, node: ir.Node) -> Convolution | None:
    weight_index, bias_index = _OPERATORS[node.op_type]
    inputs = [*node.inputs, *[None] * 9]
    data, weight = inputs[0], inputs[weight_index]
    shape = flow.shapes.shape(weight)
    if data is None or weight is None or shape is None or len(shape) < 3:
        return None
    stored = stored_weight(flow, weight) if flow.is_constant(weight) else None
    bias = inputs[bias_index] if bias_index is not None else None
    stored_bias = stored_weight(flow, bias) if bias is not None and flow.is_constant(bias) else None
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    transposed = node.op_type == "ConvTranspose"
    kernel = shape[2:]
    strides = tuple(node.attributes["strides"].as_ints()) if "strides" in node.attributes else (1,) * len(kernel)
    norm, value = _batch_norm(flow, node.outputs[0])
    activation = activation_after(flow, value)
    return Convolution(
        node=node.name or "",
        op_type=node.op_type,
        weight=(stored.value.name if stored is not None else weight.name) or "",
        bias=None if stored_bias is None else stored_bias.value.name,
        input=data.name or "",
        output=node.outputs[0].name or "",
        final=(value if activation is None else activation[1]).name or "",
        in_channels=shape[0] if transposed else shape[1] * groups,
        out_channels=shape[1] * groups if transposed else shape[0],
        groups=groups,
        kernel=kernel,
        strides=strides,
        batch_norm=None if norm is None else norm.name,
        activation=None if activation is None else activation[0],
        nested=node.graph is not flow.model.graph,
    )


def _batch_norm(flow: Dataflow, value: ir.Value) -> tuple[ir.Node | None, ir.Value]:
    current = value
    while True:
        users = flow.users(current)
        if len(users) != 1:
            return None, value
        if users[0].op_type == "BatchNormalization":
            return users[0], users[0].outputs[0]
        if users[0].op_type not in CARRYING:
            return None, value
        current = users[0].outputs[0]
