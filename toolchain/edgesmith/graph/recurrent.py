"""Recurrent layers: LSTM, GRU and RNN operators."""

from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.linear import stored_weight


@dataclass(frozen=True, slots=True)
class Recurrent:
    """One recurrent operator."""

    node: str
    op_type: str
    input: str
    output: str
    """The first output that is used: the whole sequence, or the last state."""
    input_weight: str
    recurrent_weight: str
    input_size: int
    hidden_size: int
    directions: int
    nested: bool
    """Whether it stands in a subgraph, such as a branch of an If."""


def find_recurrent(flow: Dataflow) -> list[Recurrent]:
    """Return all recurrent operators in the order of the data, subgraphs included."""
    found = (_recurrent(flow, node) for node in flow.find("LSTM", "GRU", "RNN"))
    return [layer for layer in found if layer is not None]


def _recurrent(flow: Dataflow, node: ir.Node) -> Recurrent | None:
    data, weight, recurrence = node.inputs[:3]
    if data is None or weight is None or recurrence is None:
        return None
    shape, hidden = flow.shapes.shape(weight), flow.shapes.shape(recurrence)
    if shape is None or hidden is None:
        return None
    used = next((value for value in node.outputs if value.uses() or value.is_graph_output()), node.outputs[0])
    stored = [stored_weight(flow, value) for value in (weight, recurrence)]
    return Recurrent(
        node=node.name or "",
        op_type=node.op_type,
        input=data.name or "",
        output=used.name or "",
        input_weight=(stored[0].value.name if stored[0] is not None else weight.name) or "",
        recurrent_weight=(stored[1].value.name if stored[1] is not None else recurrence.name) or "",
        input_size=shape[2],
        hidden_size=hidden[2],
        directions=shape[0],
        nested=node.graph is not flow.model.graph,
    )
