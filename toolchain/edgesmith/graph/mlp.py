"""MLPs: one or two linear layers into a wider space, an activation between, one linear layer back."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.activation import activation_between, gate_between
from edgesmith.graph.dataflow import CARRYING, ELEMENTWISE, MOVING, Dataflow
from edgesmith.graph.linear import Linear


@dataclass(frozen=True, slots=True)
class MLP:
    """One MLP: `output = down(activation(up(input)))`, or gated: `down(activation(gate(input)) * up(input))`."""

    up: Linear
    gate: Linear | None
    """The linear layer whose output passes the activation in a gated MLP; may be the same layer as `up`."""
    down: Linear
    activation: str
    """Name as in `activation.py`; "unknown" when it is none of these."""
    width: int
    """Hidden channels, as `down` reads them."""
    hidden: str
    """Value that `down` reads."""
    up_value: str
    """Value that carries the up-projection into the activation or product: part of the output when layers are fused."""
    gate_value: str | None

    @property
    def gated(self) -> bool:
        """Whether the activation is multiplied with a second projection."""
        return self.gate is not None

    @property
    def fused(self) -> bool:
        """Whether one linear layer makes both projections of a gated MLP."""
        return self.gate is not None and self.gate.product == self.up.product


_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def find_mlps(flow: Dataflow, linears: Sequence[Linear]) -> list[MLP]:
    """Return all MLPs in the order of the data, wherever they stand; `structure.py` keeps those of blocks."""
    by_output = {flow.value(linear.output): linear for linear in linears}
    found = (_mlp(flow, down, by_output) for down in linears)
    return [mlp for mlp in found if mlp is not None]


def _mlp(flow: Dataflow, down: Linear, linears: dict[ir.Value, Linear]) -> MLP | None:
    hidden = flow.value(down.input)
    sources = _sources(flow, hidden, linears)
    if sources is None:
        return None
    layers = [linear for _, linear in sources]
    if len({flow.skip_back(flow.value(each.input), CARRYING | _RESHAPING) for each in layers}) > 1:
        return None
    values = [value for value, _ in sources]
    if len(sources) == 1:
        activation = activation_between(flow, values[0], hidden)
        if activation in (None, "identity"):
            return None
        return _record(layers[0], None, down, str(activation), values[0], None)
    for gate, up in ((0, 1), (1, 0)):
        activation = gate_between(flow, values[gate], values[up], hidden)
        # Both orders fit a product without an activation; the first in the order of the data is then the gate.
        if activation not in (None, "identity", "unknown"):
            return _record(layers[up], layers[gate], down, str(activation), values[up], values[gate])
    for gate, up in ((0, 1), (1, 0)):
        activation = gate_between(flow, values[gate], values[up], hidden)
        if activation is not None:
            return _record(layers[up], layers[gate], down, activation, values[up], values[gate])
    return None


def _record(
    up: Linear, gate: Linear | None, down: Linear, activation: str, up_value: ir.Value, gate_value: ir.Value | None
) -> MLP:
    return MLP(
        up=up,
        gate=gate,
        down=down,
        activation=activation,
        width=down.in_features,
        hidden=down.input,
        up_value=up_value.name or "",
        gate_value=None if gate_value is None else gate_value.name,
    )


def _sources(flow: Dataflow, hidden: ir.Value, linears: dict[ir.Value, Linear]) -> list[tuple[ir.Value, Linear]] | None:
    """Return the one or two projections that a hidden value is computed from, element by element; None otherwise."""
    found: dict[ir.Value, Linear] = {}
    pending, seen = [hidden], {hidden}
    while pending:
        value = pending.pop()
        node = value.producer()
        linear = _projection(flow, value, linears)
        if linear is not None:
            found[value] = linear
        elif node is None:
            return None
        elif node.op_type in ELEMENTWISE | CARRYING | _RESHAPING:
            data = flow.dynamic_inputs(node)
            new = [source for source in (data[:1] if node.op_type in _RESHAPING else data) if source not in seen]
            seen.update(new)
            pending.extend(new)
        else:
            return None
        if len(found) > 2:
            return None
    ordered = sorted(found, key=flow.order)
    return [(value, found[value]) for value in ordered] or None


def _projection(flow: Dataflow, value: ir.Value, linears: dict[ir.Value, Linear]) -> Linear | None:
    """Return the linear layer whose output a value is, or is a part of."""
    if value in linears:
        return linears[value]
    node = value.producer()
    while node is not None and node.op_type in MOVING | CARRYING and node.op_type not in ("Concat", "Expand", "Tile"):
        parted = node.op_type in ("Split", "Slice", "Gather")
        source = node.inputs[0]
        if source is None:
            return None
        if parted:
            origin = flow.skip_back(source, CARRYING | _RESHAPING)
            return linears.get(origin, linears.get(source))
        node = source.producer()
        if source in linears and node is not None:
            return None
    return None
