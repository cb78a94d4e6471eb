"""Finds the units of a graph from its couplings. No names are read and no model class is known."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from edgesmith.graph.couplings import Coupling, Nesting, Role, Slot, find_couplings, find_nestings
from edgesmith.graph.dataflow import CARRYING, MOVING
from edgesmith.host.context import Notes
from edgesmith_pruning.finding.products import activations, inner_products, is_summed
from edgesmith_pruning.finding.records import Consumer, Kind, Place, Unit

_SUMS = {"MatMul": 1, "Gemm": 1, "Conv": 1}
"""Operators that can be refitted, and the input that holds the weight."""

_SCORING = ("Softmax", "Attention")


def find_units(model: ir.Model, notes: Notes | None = None) -> tuple[Unit, ...]:
    """Return what can be removed from a graph, in the order in which the graph reads it.

    Channels of queries and keys are left out: positions may be encoded in pairs of them. So are channels that a graph
    output, a normalization or an unknown operator holds; the notes say which.

    Args:
        model: The graph. It is not changed.
        notes: Told about what cannot be removed, by node.
    """
    graph = model.graph
    couplings = find_couplings(model)
    nestings = find_nestings(model, couplings)
    readers = {node.outputs[0].name: node for node in graph}
    order = {name: index for index, name in enumerate(readers)}
    finder = _Finder(graph, readers, nestings)
    sums = inner_products(graph)
    units: list[Unit] = []
    for coupling in couplings:
        reason = _obstacle(coupling, readers)
        if not reason and coupling.with_role("consumes") and is_summed(coupling, sums):
            reason = "a product of two activations, such as that of queries and keys, sums over these channels too"
        reason = reason or finder.obstacle(coupling)
        if reason:
            if notes is not None and coupling.size > 1:
                notes.skip(_node_name(readers, coupling.slots[0]), reason)
            continue
        for unit in finder.units_of(coupling):
            problem = _problem(unit, graph, readers)
            if not problem:
                units.append(unit)
            elif notes is not None:
                notes.skip(unit.name, problem)
    return tuple(sorted(units, key=lambda unit: min(order[each.reader] for each in unit.consumers)))


def _obstacle(coupling: Coupling, readers: dict[str | None, ir.Node]) -> str:
    """Return why nothing of a coupling can be removed, or an empty string."""
    if not coupling.removable:
        return f"cannot be removed: {coupling.reason}"
    if coupling.size < 2:
        return "all channels hang together"
    if any("QuantizeLinear" in readers[slot.reader].op_type for slot in coupling.slots if slot.reader):
        return "is quantized already; prune before quantizing"
    return ""


def _problem(unit: Unit, graph: ir.Graph, readers: dict[str | None, ir.Node]) -> str:
    """Return why a unit is left alone, or an empty string."""
    if any(readers[each.reader].attributes.get_int("group", 1) > 1 for each in unit.consumers):
        return "a convolution with groups sums them, and layers are refitted as a whole"
    shared = _shared_elsewhere(unit, graph)
    return f"other layers read {shared} too; cutting it would store it twice" if shared else ""


def _shared_elsewhere(unit: Unit, graph: ir.Graph) -> str:
    """Return which weight of a unit layers outside it read too, or an empty string."""
    own: dict[str, int] = {}
    for place in (*unit.producers, *unit.consumers):
        if place.operator in ("MatMul", "Gemm", "Conv", "ConvTranspose"):
            own[place.weight] = own.get(place.weight, 0) + 1
    return next((name for name, count in own.items() if len(tuple(graph.initializers[name].uses())) > count), "")


def _carries_both(nesting: Nesting) -> bool:
    """Return whether every axis of the inner channels tells the outer ones apart.

    The weight of a grouped convolution does not: its groups lie on another axis. Then all groups lose the same ones.
    """
    outer = {(slot.site, slot.axis) for slot in nesting.outer.places}
    return all((slot.site, slot.axis) in outer for slot in nesting.inner.slots)


def _node_name(readers: dict[str | None, ir.Node], slot: Slot) -> str:
    node = readers[slot.reader]
    return node.name or slot.reader or ""


class _Finder:
    """Turns couplings into units."""

    def __init__(self, graph: ir.Graph, readers: dict[str | None, ir.Node], nestings: Sequence[Nesting]) -> None:
        self._readers = readers
        self._nestings = nestings
        computed = activations(graph)
        self._products = {
            value.name: node
            for node in graph
            if node.op_type in ("MatMul", "Einsum", "Attention") and sum(each in computed for each in node.inputs) > 1
            for value in node.inputs
            if value is not None
        }
        # Heads tell scores apart: the inputs of Softmax, or the queries of an operator that is attention as a whole.
        self._scores = {node.inputs[0].name for node in graph if node.op_type in _SCORING and node.inputs[0]}

    def obstacle(self, coupling: Coupling) -> str:
        """Return why a layer that sums the channels of a coupling cannot be refitted, or an empty string."""
        readers = [self._readers[slot.reader].op_type for slot in coupling.with_role("consumes")]
        operator = next((each for each in readers if each in CARRYING | MOVING), None)
        return f"{operator} stands between a weight that sums these channels and its layer" if operator else ""

    def units_of(self, coupling: Coupling) -> Iterator[Unit]:
        """Yield the unit of a coupling, if it has one."""
        consumers = [slot for slot in coupling.with_role("consumes") if self._sums(slot)]
        if not consumers:
            return
        nesting = next((each for each in self._nestings if each.inner is coupling and _carries_both(each)), None)
        groups = nesting.outer.size if nesting else 1
        summing = tuple(self._consumer(slot, coupling, nesting) for slot in consumers)
        summed = {(slot.reader, slot.port, slot.axis) for slot in consumers}
        made = [slot for slot in coupling.slots if (slot.reader, slot.port, slot.axis) not in summed]
        yield Unit(
            name=_node_name(self._readers, consumers[0]),
            kind=self._kind(coupling, nesting),
            size=coupling.size * groups,
            groups=groups,
            producers=tuple(Place(*self._place(slot, coupling, nesting)) for slot in made),
            consumers=summing,
            coupling=coupling,
            nesting=nesting,
        )

    def _sums(self, slot: Slot) -> bool:
        """Whether a slot is the weight of a layer whose other input carries the channels."""
        node = self._readers[slot.reader]
        return _SUMS.get(node.op_type) == slot.port and node.inputs[0] is not None

    def _kind(self, coupling: Coupling, nesting: Nesting | None) -> Kind:
        places = {slot.value for slot in coupling.activations}
        if places & set(self._products):
            if not places & self._scores:
                return "value-channels"
            return "heads" if nesting is None else "query-heads"
        operators = {self._readers[slot.reader].op_type for slot in coupling.slots}
        return "convolution-channels" if operators & {"Conv", "ConvTranspose"} else "channels"

    def _place(
        self, slot: Slot, coupling: Coupling, nesting: Nesting | None
    ) -> tuple[str, int, str, str, int, int, tuple[tuple[int, ...], ...], Role]:
        positions = slot.indices
        if nesting is not None:
            positions = tuple(
                tuple(nesting.cell(slot, outer, inner))
                for outer in range(nesting.outer.size)
                for inner in range(coupling.size)
            )
        reader = slot.reader or ""
        return (
            reader,
            slot.port,
            self._readers[reader].op_type,
            slot.value,
            slot.axis,
            slot.length,
            positions,
            slot.role,
        )

    def _consumer(self, slot: Slot, coupling: Coupling, nesting: Nesting | None) -> Consumer:
        source = self._readers[slot.reader].inputs[0]
        return Consumer(*self._place(slot, coupling, nesting), source=str(source.name) if source else "")
