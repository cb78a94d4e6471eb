"""Residual connections, the streams that they form, and the blocks along a stream."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import onnx_ir as ir

from edgesmith.graph.attention import Attention
from edgesmith.graph.convolution import Convolution
from edgesmith.graph.dataflow import CARRYING, Dataflow
from edgesmith.graph.mlp import MLP
from edgesmith.graph.norm import Norm

Item = TypeVar("Item")
NormPlace = Literal["pre", "post", "sandwich", "none"]


@dataclass(frozen=True, slots=True)
class Residual:
    """One residual connection: `output = skip + branch(skip)`."""

    node: str
    """Name of the node that adds."""
    skip: str
    branch: str
    """The summand that is computed from the skip."""
    output: str
    norm_before: Norm | None
    """Normalization that the branch begins with."""
    norm_after: Norm | None
    """Normalization of the sum, when the stream goes on through it."""
    norm_inside: Norm | None
    """Normalization that the branch ends with."""
    attentions: tuple[Attention, ...] = ()
    mlps: tuple[MLP, ...] = ()
    convolutions: tuple[Convolution, ...] = ()
    parallel: bool = False
    """Whether the branch starts where the connection before it started."""


@dataclass(frozen=True, slots=True)
class Block:
    """Residual connections that repeat together: attention and MLP of a transformer, or a block of convolutions."""

    input: str
    output: str
    norm: NormPlace
    residuals: tuple[Residual, ...]

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention layers in it."""
        return tuple(each for residual in self.residuals for each in residual.attentions)

    @property
    def mlps(self) -> tuple[MLP, ...]:
        """The MLPs in it."""
        return tuple(each for residual in self.residuals for each in residual.mlps)

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """The convolutions in it."""
        return tuple(each for residual in self.residuals for each in residual.convolutions)


@dataclass(frozen=True, slots=True)
class Stream:
    """A chain of residual connections: values of one shape that blocks read from and add to."""

    input: str
    output: str
    width: int | None
    """Channels."""
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Layers:
    """What blocks are made of, as found before."""

    attentions: Sequence[Attention]
    mlps: Sequence[MLP]
    convolutions: Sequence[Convolution]
    norms: Sequence[Norm]
    heavy: frozenset[ir.Node]
    """Nodes with weights that multiply: a branch must hold one."""


@dataclass(frozen=True, slots=True)
class _Connection:
    """A residual connection while it is being assembled."""

    residual: Residual
    path: frozenset[ir.Node]


def find_streams(flow: Dataflow, layers: Layers) -> list[Stream]:
    """Return the residual streams in the order of the data."""
    connections = _connections(flow, layers)
    filled = _assign(flow, connections, layers)
    after = {norm.output: norm for norm in layers.norms}
    streams = [_stream(flow, chain) for chain in _chains(flow, filled, after)]
    return sorted(streams, key=lambda stream: flow.order(flow.value(stream.output)))


def _connections(flow: Dataflow, layers: Layers) -> list[_Connection]:
    found: dict[ir.Value, _Connection] = {}
    norms = _by_input(flow, layers.norms)
    for node in flow.find("Add", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
        first, second = node.inputs[:2]
        if first is None or second is None or flow.is_constant(first) or flow.is_constant(second):
            continue
        for skip, branch in ((first, second), (second, first)):
            connection = _connection(flow, node, flow.skip_back(skip), branch, layers, found)
            if connection is not None:
                norm = norms.get(connection.residual.skip, [])
                before = next((n for n in norm if flow.producer(n.output) in connection.path), None)
                inside = _ends_with_norm(flow, branch, layers.norms, before)
                residual = replace(connection.residual, norm_before=before, norm_inside=inside)
                found[flow.value(residual.output)] = replace(connection, residual=residual)
                break
    return list(found.values())


def _connection(
    flow: Dataflow,
    node: ir.Node,
    skip: ir.Value,
    branch: ir.Value,
    layers: Layers,
    found: Mapping[ir.Value, _Connection],
) -> _Connection | None:
    if skip is flow.skip_back(branch):
        return None
    shapes = flow.shapes.shape(skip), flow.shapes.shape(branch)
    if None not in shapes and shapes[0] != shapes[1]:
        # Such as a mask that is spread over scores.
        return None
    path = flow.between(skip, branch)
    parallel = False
    if not path and skip in found:
        # Two branches side by side: the second reads what the first one read.
        path = flow.between(flow.value(found[skip].residual.skip), branch)
        parallel = skip.producer() not in path
    if not any(each in layers.heavy for each in path):
        return None
    sums = [value for value in node.outputs[3:4] if value.uses()]
    residual = Residual(
        node=node.name or "",
        skip=skip.name or "",
        branch=branch.name or "",
        output=(sums or node.outputs)[0].name or "",
        norm_before=None,
        norm_after=None,
        norm_inside=None,
        parallel=parallel,
    )
    return _Connection(residual, frozenset(path))


def _assign(flow: Dataflow, connections: Iterable[_Connection], layers: Layers) -> list[_Connection]:
    """Give each layer to the shortest connection around it; drop connections that are left without any."""
    ordered = sorted(connections, key=lambda c: (len(c.path), flow.order(flow.value(c.residual.output))))
    owner: dict[ir.Node, int] = {}
    for index, connection in enumerate(ordered):
        for node in connection.path:
            owner.setdefault(node, index)
    attentions = _placed(flow, owner, layers.attentions, lambda item: item.context)
    mlps = _placed(flow, owner, layers.mlps, lambda item: item.down.product)
    convolutions = _placed(flow, owner, layers.convolutions, lambda item: item.output)
    filled = []
    for index, connection in enumerate(ordered):
        residual = replace(
            connection.residual,
            attentions=tuple(attentions.get(index, ())),
            mlps=tuple(mlps.get(index, ())),
            convolutions=tuple(convolutions.get(index, ())),
        )
        if any(owner[node] == index for node in connection.path if node in layers.heavy):
            filled.append(replace(connection, residual=residual))
    return sorted(filled, key=lambda c: flow.order(flow.value(c.residual.output)))


def _chains(flow: Dataflow, connections: Sequence[_Connection], norms: Mapping[str, Norm]) -> list[list[Residual]]:
    """Link connections whose skip is the sum before, as it is or behind a normalization or activation."""
    outputs = {connection.residual.output: connection.residual for connection in connections}
    following: dict[str, tuple[Residual, Norm | None]] = {}
    started: list[Residual] = []
    for connection in connections:
        residual = connection.residual
        before, norm = _before(flow, residual.skip, outputs, norms)
        if before is None or before.output in following:
            started.append(residual)
        else:
            following[before.output] = (residual, norm)
    chains = []
    for residual in started:
        chain = [residual]
        while chain[-1].output in following:
            successor, norm = following[chain[-1].output]
            chain[-1] = replace(chain[-1], norm_after=norm)
            chain.append(successor)
        chain[-1] = replace(chain[-1], norm_after=_only_norm(flow, chain, norms))
        chains.append(chain)
    return chains


def _before(
    flow: Dataflow, skip: str, outputs: Mapping[str, Residual], norms: Mapping[str, Norm]
) -> tuple[Residual | None, Norm | None]:
    if skip in outputs:
        return outputs[skip], None
    if skip in norms:
        source = flow.skip_back(flow.value(norms[skip].input)).name or ""
        return outputs.get(source), norms[skip]
    behind = flow.skip_back(flow.value(skip), CARRYING | {"Relu", "Clip"})
    return outputs.get(behind.name or ""), None


def _only_norm(flow: Dataflow, chain: Sequence[Residual], norms: Mapping[str, Norm]) -> Norm | None:
    """Return the normalization behind the last sum of a post-norm chain: its only reader."""
    last = chain[-1]
    if last.norm_before is not None or any(residual.norm_before is not None for residual in chain):
        # A pre-norm stream ends with a normalization of its own, which belongs to no block.
        return None
    candidates = [norm for norm in norms.values() if flow.skip_back(flow.value(norm.input)).name == last.output]
    if len(candidates) != 1:
        return None
    nodes = set(flow.between(flow.value(last.output), flow.value(candidates[0].output)))
    return candidates[0] if all(node in nodes for node in flow.users(flow.value(last.output))) else None


def _stream(flow: Dataflow, chain: Sequence[Residual]) -> Stream:
    mixed = any(residual.attentions for residual in chain) and any(residual.mlps for residual in chain)
    groups: list[list[Residual]] = []
    for unit in _units(chain):
        if groups and not _starts_block(groups[-1], unit, mixed):
            groups[-1] += unit
        else:
            groups.append(unit)
    blocks = tuple(_block(group) for group in groups)
    shape = flow.shapes.shape(flow.value(chain[0].output))
    convolutional = any(residual.convolutions for residual in chain) and not mixed
    width = None if not shape else shape[1] if convolutional and len(shape) > 2 else shape[-1]
    return Stream(input=chain[0].skip, output=blocks[-1].output, width=width, blocks=blocks)


def _units(chain: Sequence[Residual]) -> list[list[Residual]]:
    """Put connections side by side with the one before them."""
    units: list[list[Residual]] = []
    for residual in chain:
        if units and residual.parallel:
            units[-1].append(residual)
        else:
            units.append([residual])
    return units


def _starts_block(block: Sequence[Residual], unit: Sequence[Residual], mixed: bool) -> bool:
    """Whether a new block begins. With attention and MLPs, a block ends when attention follows an MLP."""
    return not mixed or (any(each.attentions for each in unit) and any(each.mlps for each in block))


def _block(group: Sequence[Residual]) -> Block:
    last = group[-1]
    norm: NormPlace = "none"
    if any(residual.norm_before is not None for residual in group):
        norm = "sandwich" if any(residual.norm_inside is not None for residual in group) else "pre"
    elif any(residual.norm_after is not None for residual in group):
        norm = "post"
    output = last.output if last.norm_after is None else last.norm_after.output
    return Block(input=group[0].skip, output=output, norm=norm, residuals=tuple(group))


def _by_input(flow: Dataflow, norms: Iterable[Norm]) -> dict[str, list[Norm]]:
    found: dict[str, list[Norm]] = {}
    for norm in norms:
        if norm.kind != "batch":
            found.setdefault(flow.skip_back(flow.value(norm.input)).name or "", []).append(norm)
    return found


def _ends_with_norm(flow: Dataflow, branch: ir.Value, norms: Iterable[Norm], before: Norm | None) -> Norm | None:
    end = flow.skip_back(branch).name
    return next((norm for norm in norms if norm.output == end and norm is not before and norm.kind != "batch"), None)


def _placed(
    flow: Dataflow, owner: Mapping[ir.Node, int], items: Iterable[Item], place: Callable[[Item], str]
) -> dict[int, list[Item]]:
    """Sort layers by the connection that owns the node behind the value that `place` names."""
    found: dict[int, list[Item]] = {}
    for item in items:
        index = owner.get(flow.producer(place(item)))
        if index is not None:
            found.setdefault(index, []).append(item)
    return found
