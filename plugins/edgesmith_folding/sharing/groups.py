"""Which blocks may share: neighbours in one stream that compute the same with other numbers."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.errors import StepError
from edgesmith.graph.linear import Linear
from edgesmith_folding.finding.places import Place
from edgesmith_folding.finding.products import is_plain_product
from edgesmith_folding.options.sharing import ShareBlocksOptions

_FORMING = frozenset({"Expand", "Reshape", "Tile"})


@dataclass(frozen=True, slots=True)
class Sharer:
    """A block that may share weights."""

    place: Place
    linears: tuple[Linear, ...]
    """Its linear layers: attention, then MLP, in the order of the data."""
    signature: Mapping[str, Hashable]
    """What it computes, whatever its numbers are, by the name of each property."""
    obstacle: str
    """Why it cannot share; empty where it can."""


def find_sharers(model: ir.Model, places: Mapping[int, Place]) -> dict[int, Sharer]:
    """Return what each block could share.

    Args:
        model: The graph that the blocks were found in.
        places: Blocks by number.
    """
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return {number: _sharer(model.graph, values, place) for number, place in places.items()}


def choose_groups(options: ShareBlocksOptions, sharers: Mapping[int, Sharer]) -> tuple[tuple[int, ...], ...]:
    """Return the groups that share.

    Raises:
        StepError: A group that is named cannot share.
    """
    if options.groups is not None:
        for group in options.groups:
            _require_alike(group, sharers)
        return tuple(group for group in options.groups if len(group) > 1)
    found: list[tuple[int, ...]] = []
    for row in rows_of(options, sharers):
        parts = [row[start : start + options.group_size] for start in range(0, len(row), options.group_size)]
        found += [part for part in parts if len(part) == options.group_size > 1]
    return tuple(found)


def difference(one: Sharer, other: Sharer) -> str:
    """Return the properties in which two blocks differ, for people; empty where they compute the same."""
    return ", ".join(name for name, value in one.signature.items() if value != other.signature[name])


def left_out(
    options: ShareBlocksOptions, sharers: Mapping[int, Sharer], groups: Iterable[tuple[int, ...]]
) -> dict[int, str]:
    """Return the blocks that stay private though the options would let them share, with the reason."""
    grouped = {number for group in groups for number in group}
    found: dict[int, str] = {}
    for number, sharer in sharers.items():
        if number in grouped or not _wanted(options, sharer):
            continue
        near = [each for each in (number + 1, number - 1) if each in sharers and _wanted(options, sharers[each])]
        unlike = {each: difference(sharer, sharers[each]) for each in near}
        reasons = [f"it differs from block {each} in {what}" for each, what in unlike.items() if what]
        found[number] = sharer.obstacle or " and ".join(reasons) or "no block is left to share with"
    return found


def rows_of(options: ShareBlocksOptions, sharers: Mapping[int, Sharer]) -> tuple[tuple[int, ...], ...]:
    """Return rows of neighbours that may share: they compute the same, and none of them stays private."""
    rows: list[list[int]] = []
    last = None
    for number, sharer in sharers.items():
        if not _wanted(options, sharer) or sharer.obstacle:
            continue
        if last is not None and last + 1 == number and not difference(sharers[last], sharer):
            rows[-1].append(number)
        else:
            rows.append([number])
        last = number
    return tuple(tuple(row) for row in rows)


def _wanted(options: ShareBlocksOptions, sharer: Sharer) -> bool:
    return sharer.place.from_start >= options.keep_first and sharer.place.from_end >= options.keep_last


def _require_alike(group: tuple[int, ...], sharers: Mapping[int, Sharer]) -> None:
    for number in group:
        reason = "it does not exist" if number not in sharers else sharers[number].obstacle
        unlike = "" if reason else difference(sharers[group[0]], sharers[number])
        if unlike:
            reason = f"it computes something else than block {group[0]}: they differ in {unlike}"
        if reason:
            raise StepError(
                f"block {number} cannot share weights: {reason}",
                expected="groups of blocks that compute the same with other numbers",
                why="the option groups says which blocks share",
                fix="correct the option groups; it counts the blocks of the graph as it reaches this step, so behind "
                "remove-blocks only those that are left",
            )


def _sharer(graph: ir.Graph, values: Mapping[str, ir.Value], place: Place) -> Sharer:
    linears = _linears(place)
    stored = [graph.initializers.get(linear.weight) for linear in linears]
    shapes = tuple((linear.op_type, linear.in_features, linear.out_features, linear.weight_axis) for linear in linears)
    made = {value for node in place.nodes for value in node.outputs}
    # Each block has caches and sizes of its own, which say nothing about what it computes.
    made |= {cache.input for cache in place.caches}
    read = {value for node in place.nodes for value in _numbers_read(node) if value not in made}
    # Masks and rotary tables: blocks with a sliding window read another mask than those without.
    sides = frozenset(
        str(value.name)
        for value in read
        if value.const_value is None and not _constant(value) and value.name != place.block.input
    )
    heads = tuple((each.heads, each.kv_heads, each.head_dim, each.causal) for each in place.block.attentions)
    activations = tuple((each.activation, each.gated) for each in place.block.mlps)
    # A bias stays private where others of the group have none, as behind blocks that were made up for.
    biases = {linear.bias_node for linear in linears}
    operators = frozenset(Counter(node.op_type for node in place.nodes if node.name not in biases).items())
    types = tuple(None if value is None else value.dtype for value in stored)
    signature: dict[str, Hashable] = {
        "stream": place.stream,
        "linear layers": shapes,
        "types of weights": types,
        "masks or position tables": sides,
        "heads": heads,
        "activations": activations,
        "operators": operators,
        "normalization": place.block.norm,
    }
    return Sharer(place, linears, signature, _obstacle(graph, values, place, linears))


def _numbers_read(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node without those that say which form its result has."""
    inputs = node.inputs[:1] if node.op_type in _FORMING else node.inputs
    return [value for value in inputs if value is not None]


def _linears(place: Place) -> tuple[Linear, ...]:
    found: dict[str, Linear] = {}
    for residual in place.block.residuals:
        for attention in residual.attentions:
            for projection in (attention.query, attention.key, attention.value, attention.output):
                if projection is not None:
                    found.setdefault(projection.linear.product, projection.linear)
        for mlp in residual.mlps:
            for linear in (mlp.gate, mlp.up, mlp.down):
                if linear is not None:
                    found.setdefault(linear.product, linear)
    return tuple(found.values())


def _constant(value: ir.Value) -> bool:
    """Whether a value is made of initializers alone, such as a transposed weight."""
    pending, seen = [value], {value}
    while pending:
        node = (source := pending.pop()).producer()
        if node is None and source.const_value is None:
            return False
        sources = {each for each in (() if node is None else node.inputs) if each is not None} - seen
        seen |= sources
        pending += sources
    return True


def _obstacle(graph: ir.Graph, values: Mapping[str, ir.Value], place: Place, linears: tuple[Linear, ...]) -> str:
    if not place.nodes:
        return place.obstacle
    if not linears:
        return "it has no linear layer in an attention or MLP"
    for linear in linears:
        value = graph.initializers.get(linear.weight)
        node = values[linear.product].producer() if linear.product in values else None
        if node is None or value is None or linear.op_type not in ("MatMul", "Gemm"):
            return f"the weight of {linear.node} is no plain initializer of a MatMul or Gemm"
        if value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or linear.weight_axis is None:
            return f"the weight of {linear.node} is not stored as a float matrix"
        if not is_plain_product(node):
            return f"{linear.node} scales its product"
        if linear.bias is not None and linear.bias not in graph.initializers:
            return f"the bias of {linear.node} is no initializer"
    return ""
