"""Which of the units that a graph has may be pruned under the options."""

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from edgesmith.graph.dataflow import Dataflow
from edgesmith.graph.structure import find_structure
from edgesmith.host.context import Notes
from edgesmith.protection import Protection
from edgesmith_pruning.finding.records import Unit
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.options.structure import PruneStructureOptions


def selected_units(model: ir.Model, options: PruneStructureOptions, notes: Notes) -> tuple[Unit, ...]:
    """Return the units that may be pruned; the notes say why others may not.

    Args:
        model: The graph.
        options: Kinds, names and blocks.
        notes: Told about units that stay whole.
    """
    outside = _outside_blocks(model, options)
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    chosen = []
    for unit in find_units(model, notes):
        if options.share(unit.kind) == 0:
            continue
        reason = options.obstacle(unit.name) or outside.get(unit.consumers[0].reader, "")
        if not reason and options.reads_data:
            reason = next(filter(None, (_unmeasurable(nodes[each.reader]) for each in unit.consumers)), "")
        if reason:
            notes.skip(unit.name, reason)
        else:
            chosen.append(unit)
    return tuple(chosen)


def protected_atoms(units: Iterable[Unit], protection: Protection) -> Mapping[str, tuple[int, ...]]:
    """Return the atoms of each unit that must stay, by the unit's key.

    Args:
        units: What may be pruned.
        protection: Places of weights; an atom stays where any of its places is among them.

    Raises:
        RecipeError: The protection was made for another model.
    """
    kept = {}
    for unit in units:
        atoms: set[int] = set()
        for place in (*unit.producers, *unit.consumers):
            held = protection.places(place.weight, place.axis, place.length)
            if held:
                atoms.update(atom for atom, positions in enumerate(place.positions) if not held.isdisjoint(positions))
        kept[unit.key] = tuple(sorted(atoms))
    return kept


def _unmeasurable(node: ir.Node) -> str:
    """Return why what a layer reads are not rows that one matrix multiplies, or an empty string."""
    weight = node.inputs[1]
    if node.op_type == "MatMul" and (weight is None or weight.shape is None or len(weight.shape) != 2):
        return "a layer with several matrices sums them; score magnitude with refit none looks at no data"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "a Gemm that transposes its input sums them; score magnitude with refit none looks at no data"
    return ""


def _outside_blocks(model: ir.Model, options: PruneStructureOptions) -> dict[str, str]:
    """Return the nodes of blocks that stay whole, by first output, with the reason."""
    if not options.keep_first_blocks and not options.keep_last_blocks:
        return {}
    structure, flow = find_structure(model), Dataflow(model)
    blocks = structure.blocks
    whole = [*blocks[: options.keep_first_blocks], *blocks[len(blocks) - options.keep_last_blocks :]]
    numbers: dict[str, str] = {}
    for block in whole:
        inside = flow.ancestors(flow.value(block.output)) - flow.ancestors(flow.value(block.input))
        for node in inside:
            numbers[str(node.outputs[0].name)] = "its block is named in keep_first_blocks or keep_last_blocks"
    return numbers
