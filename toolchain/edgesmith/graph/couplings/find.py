"""Finds the channel couplings of a graph, from the graph alone."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.errors import ModelError
from edgesmith.graph.couplings.emitter import Emitter, UnknownRankError, describe, site_of
from edgesmith.graph.couplings.propagation import NONE, Labels, Propagation, SplitError
from edgesmith.graph.couplings.records import Coupling, Obstacle, Slot
from edgesmith.graph.couplings.relations import Axis, Relations
from edgesmith.graph.couplings.rules import RULES
from edgesmith.graph.couplings.sizes import SHAPE_PORTS, Sizes

_OLDEST_OPSET = 13
_CONSTANT_KEEPERS = {"Transpose", "Reshape", "Flatten", "Cast", "Identity", "Unsqueeze", "Squeeze"} | {
    "DequantizeLinear",
    "QuantizeLinear",
}


def find_couplings(model: ir.Model) -> tuple[Coupling, ...]:
    """Return which channels of a graph must be removed together.

    Nothing but operators, shapes and constants is read: neither names nor metadata play a part. A coupling that
    cannot be removed is listed too, with its obstacles. Dynamic axes (batch, sequence) carry no channels.

    Args:
        model: A graph of opset 13 or later. It is not changed.

    Returns:
        Couplings in the order in which the graph first mentions them. Each has at least one weight axis that produces
        its channels. Axes of length one belong to none.

    Raises:
        ModelError: The opset is too old, or a value has no name.

    Source:
        Dependency graphs as in DepGraph (Fang et al., CVPR 2023, section 3), here over axes of an ONNX graph with
        splits and merges of axes, so that heads and groups come out as atoms.
    """
    relations, _ = study(model)
    found: dict[tuple[Slot, ...], Coupling] = {}
    initializers = _initializers(model)
    seeds = [axis for axis in relations.lengths if axis.site in initializers]
    for propagation in _propagations(relations, seeds):
        for coupling in _couplings_of(propagation, relations, initializers):
            found.setdefault(coupling.slots, coupling)
    return tuple(sorted(found.values(), key=lambda coupling: _first_place(coupling, relations)))


def study(model: ir.Model) -> tuple[Relations, Sizes]:
    """Apply every operator's rule; return what the rules say, and the sizes that they worked out."""
    graph = _with_shapes(model).graph
    relations, sizes = Relations(), Sizes()
    opset = graph.opset_imports.get("", _OLDEST_OPSET)
    _check(model, opset)
    for value in graph.inputs:
        _hold(value, sizes, relations, "is an input of the graph")
    for node in graph:
        follows = sizes.follow(node)
        if node.op_type == "Constant":
            _hold(node.outputs[0], sizes, relations, "comes from a Constant node; normalizing makes it an initializer")
        elif node.op_type != "Shape":
            _apply_rule(node, sizes, relations)
        if not follows:
            _hold_counted_axes(node, sizes, relations)
        _hold_captured(node, sizes, relations)
    for value in graph.outputs:
        _hold(value, sizes, relations, "is an output of the graph")
    _send_roles_back(graph, relations)
    return relations, sizes


def _check(model: ir.Model, opset: int) -> None:
    if opset < _OLDEST_OPSET:
        raise ModelError(
            f"the graph has opset {opset}",
            expected=f"opset {_OLDEST_OPSET} or later",
            why="Earlier operators keep axes and sizes in other places.",
            fix="Normalize the model first (edgesmith.frontends.normalize).",
        )
    if any(value.name is None for node in model.graph for value in node.outputs):
        raise ModelError(
            "a value of the graph has no name",
            expected="a name for every value",
            why="A coupling tells by name where its channels are.",
            fix="Save and load the graph, or run onnx_ir's NameFixPass on it.",
        )


def _with_shapes(model: ir.Model) -> ir.Model:
    """Return the model itself when every rank is known, else a clone with inferred shapes."""
    values = (value for node in model.graph for value in node.outputs if value.name)
    if all(value.shape is not None for value in values):
        return model
    from onnx_ir.passes.common import ShapeInferencePass

    return ShapeInferencePass()(model.clone()).model


def _apply_rule(node: ir.Node, sizes: Sizes, relations: Relations) -> None:
    emitter = Emitter(node, sizes, relations)
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if rule is None:
        domain = f"{node.domain}." if node.domain else ""
        emitter.fix_all(f"the operator {domain}{node.op_type} has no channel rule")
        return
    try:
        rule(emitter)
    except UnknownRankError:
        emitter.fix_all("the rank of an input or output is unknown")


def _hold(value: ir.Value, sizes: Sizes, relations: Relations, reason: str) -> None:
    for index in range(len(sizes.dims(value) or ())):
        relations.obstruct(Axis(value.name or "", index), Obstacle(value.name or "", "", reason, "structure"))


def _hold_counted_axes(node: ir.Node, sizes: Sizes, relations: Relations) -> None:
    """Hold axes whose length a node reads as a number, other than as a target shape."""
    for index, value in enumerate(node.inputs):
        target = SHAPE_PORTS.get(node.op_type) == index
        for element in sizes.elements(value) or ():
            # The rule of Reshape looks at computed lengths itself: it can leave one of them to be inferred.
            if target and (node.op_type == "Reshape" or not element.computed):
                continue
            for name, axis in element.sources:
                obstacle = Obstacle(describe(node), node.op_type, "computes with the length of the axis", "structure")
                relations.obstruct(Axis(name, axis), obstacle)


def _hold_captured(node: ir.Node, sizes: Sizes, relations: Relations) -> None:
    """Hold everything that a subgraph reads from outside."""
    for attribute in node.attributes.values():
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else attribute.as_graphs()
        for graph in graphs:
            read = [value for inner in graph.all_nodes() for value in inner.inputs] + list(graph.outputs)
            for value in read:
                if value is not None and value.name:
                    _hold(value, sizes, relations, f"is read inside a subgraph of {describe(node)}")


def _send_roles_back(graph: ir.Graph, relations: Relations) -> None:
    """Give a weight the role of what is made of it alone by transposing, casting, dequantizing and so on."""
    constant = {value.name for node in graph for value in node.inputs if value and _is_initializer(value)}
    derived = []
    for node in graph:
        present = [value for value in node.inputs if value is not None]
        if node.op_type in _CONSTANT_KEEPERS and all(value.name in constant for value in present):
            constant.add(node.outputs[0].name)
            derived.append(node)
    for node in reversed(derived):
        sites = {site_of(node, index, value) for index, value in enumerate(node.inputs) if value is not None}
        # Helper axes carry the node's own output as site, so two rounds cross a split with a merge.
        for _ in range(2):
            for axis in [axis for axis in relations.touching if axis.site == node.outputs[0].name]:
                for relation in relations.touching[axis]:
                    for other in relation.axes:
                        if (other.site in sites or other.number < 0) and other not in relations.roles:
                            relations.roles[other] = set(relations.roles.get(axis, set()))


def _is_initializer(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None


def _initializers(model: ir.Model) -> dict[tuple[str, int], str]:
    """Return the name of the initializer that each reader reads at each input."""
    return {
        (node.outputs[0].name or "", index): value.name or ""
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None and _is_initializer(value)
    }


def _propagations(relations: Relations, seeds: Iterable[Axis]) -> Iterator[Propagation]:
    """Propagate from each seed, and from the parts of every product met, unless an earlier result covers it."""
    covered: set[Axis] = set()
    tried: set[Axis] = set()
    for seed in seeds:
        pending = [seed]
        while pending:
            axis = pending.pop()
            if axis in covered or axis in tried or axis not in relations.lengths:
                continue
            tried.add(axis)
            try:
                propagation = Propagation(relations, axis)
            except SplitError as split:
                pending.extend(reversed(split.parts))
                continue
            covered.update(axis for axis, labels in propagation.labels.items() if (labels != NONE).all())
            pending.extend(reversed(propagation.crossed))
            yield propagation


def _couplings_of(
    propagation: Propagation, relations: Relations, initializers: dict[tuple[str, int], str]
) -> Iterator[Coupling]:
    """Yield one coupling for each set of channels that touch the same axes and obstacles."""
    axes = sorted(propagation.labels, key=relations.places.__getitem__)
    for atoms in _alike(propagation, relations, axes):
        slots: list[Slot] = []
        activations: list[Slot] = []
        # Most axes hold the channels in the same order: one tuple of indices serves them all.
        shared: dict[bytes, tuple[tuple[int, ...], ...]] = {}
        for axis in axes:
            labels = propagation.labels[axis]
            key = labels.tobytes()
            indices = shared[key] = shared.get(key) or _indices(labels, atoms)
            if axis.number >= 0 and any(indices):
                slot = _slot(axis, indices, len(labels), relations, initializers)
                (slots if slot.reader else activations).append(slot)
        if any(slot.role == "produces" for slot in slots):
            obstacles = tuple(dict.fromkeys(_obstacles(propagation, relations, axes, atoms)))
            yield Coupling(len(atoms), tuple(slots), tuple(activations), obstacles)


def _alike(propagation: Propagation, relations: Relations, axes: list[Axis]) -> Iterator[NDArray[np.int64]]:
    """Yield groups of channels with the same axes and obstacles, in the order of their first position."""
    channels = np.unique(np.concatenate([propagation.labels[axis] for axis in axes]))
    channels = channels[channels != NONE]
    rows = []
    for axis in axes:
        labels = propagation.labels[axis]
        rows.append(np.isin(channels, labels))
        for placed in relations.obstacles.get(axis, ()):
            if placed.positions is not None:
                rows.append(np.isin(channels, labels[placed.positions]))
    columns = np.stack(rows, axis=1)
    _, first, group = np.unique(columns, axis=0, return_index=True, return_inverse=True)
    for index in np.argsort(first):
        yield channels[group.reshape(-1) == index]


def _obstacles(
    propagation: Propagation, relations: Relations, axes: list[Axis], atoms: NDArray[np.int64]
) -> Iterator[Obstacle]:
    for axis in axes:
        labels = propagation.labels[axis]
        present = np.isin(labels, atoms)
        if not present.any():
            continue
        for obstacle, positions in relations.obstacles.get(axis, ()):
            if positions is None or present[positions].any():
                yield obstacle
        if axis in propagation.tangled:
            yield Obstacle(str(axis.site), "", "is regrouped so that its channels hold each other", "structure")
        if len(atoms) == 1 and present.all():
            yield Obstacle(str(axis.site), "", "has channels that all hang together", "structure")


def _slot(
    axis: Axis,
    indices: tuple[tuple[int, ...], ...],
    length: int,
    relations: Relations,
    initializers: dict[tuple[str, int], str],
) -> Slot:
    if isinstance(axis.site, str):
        return Slot(axis.site, axis.number, "passes", length, indices)
    reader, port = axis.site
    return Slot(initializers[axis.site], axis.number, relations.role(axis), length, indices, reader, port)


def _indices(labels: Labels, atoms: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    """Return the positions of each atom."""
    order = np.argsort(labels, kind="stable")
    bounds = [np.searchsorted(labels[order], atoms, side).tolist() for side in ("left", "right")]
    positions = order.tolist()
    return tuple(tuple(positions[start:end]) for start, end in zip(*bounds, strict=True))


def _first_place(coupling: Coupling, relations: Relations) -> tuple[int, int]:
    slot = coupling.slots[0]
    site = (slot.reader or "", slot.port)
    return relations.places[Axis(site, slot.axis)], min(position for each in slot.indices for position in each)
