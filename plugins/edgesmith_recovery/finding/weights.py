"""Which weights of a graph are trained, and which of their entries must stay."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.kept import kept
from edgesmith.graph.structure import Structure
from edgesmith.graph.weight_sites import weight_readers
from edgesmith.host.context import Notes
from edgesmith.protection import Protection
from edgesmith_recovery.options.recover import RecoverOptions

Role = Literal["matrix", "table", "bias", "norm"]
Mask = NDArray[np.bool_]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class TrainedWeight:
    """One stored weight that is trained, whatever the number of nodes that read it."""

    name: str
    """Name of the initializer; of several that share one tensor, the first."""
    role: Role
    inputs_last: bool
    """Whether a matrix is stored with its inputs behind its outputs."""
    frozen: Mask | None
    """Entries that stay as they are, True, in the weight's shape; None where all are free."""


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    role: Role
    node: str
    inputs_last: bool = True


def find_weights(
    graph: ir.Graph,
    structure: Structure,
    options: RecoverOptions,
    protection: Protection | None,
    notes: Notes,
) -> tuple[TrainedWeight, ...]:
    """Return the weights to train, in the order of the data, each once.

    Weights that are stored as codes, stand in Constant nodes, belong to nodes that are not selected or that an earlier
    step marked (`edgesmith.graph.kept`) are left alone, each with its reason in the notes.

    Raises:
        RecipeError: The protection was made for weights of other shapes.
    """
    heads, marked = _first_names(graph), _kept_weights(graph)
    trained: dict[str, TrainedWeight] = {}
    for found in _all_weights(structure):
        name = heads.get(found.name, found.name)
        if name in trained or not _is_wanted(found.role, options):
            continue
        reason = options.obstacle(found.node) or marked.get(name, "") or _obstacle(graph, name)
        if reason:
            notes.skip(found.node, reason)
            continue
        frozen = _frozen(graph.initializers[name], found.role, options, protection)
        if frozen is not None and frozen.all():
            notes.skip(found.node, "all entries of its weight are zero or protected")
            continue
        trained[name] = TrainedWeight(name, found.role, found.inputs_last, frozen)
    return tuple(trained.values())


def trained_count(graph: ir.Graph, weights: tuple[TrainedWeight, ...]) -> int:
    """Return how many numbers of the graph may change."""
    total = 0
    for weight in weights:
        shape = graph.initializers[weight.name].shape
        size = int(np.prod(shape.numpy())) if shape is not None else 0
        total += size - (0 if weight.frozen is None else int(weight.frozen.sum()))
    return total


def _all_weights(structure: Structure) -> Iterator[_Found]:
    """Yield every weight that the structure names. Tables come first, so that a head tied to one is that table."""
    for embedding in structure.embeddings:
        if embedding.kind != "patch":
            yield _Found(embedding.table, "table", embedding.node)
    for linear in structure.linears:
        yield _Found(linear.weight, "matrix", linear.node, linear.weight_axis != 1)
        if linear.bias is not None:
            yield _Found(linear.bias, "bias", linear.node)
    for convolution in structure.convolutions:
        yield _Found(convolution.weight, "matrix", convolution.node, not convolution.transposed)
        if convolution.bias is not None:
            yield _Found(convolution.bias, "bias", convolution.node)
    for layer in structure.recurrent:
        yield _Found(layer.input_weight, "table", layer.node)
        yield _Found(layer.recurrent_weight, "table", layer.node)
    for norm in structure.norms:
        for name in (norm.scale, norm.bias):
            if name is not None:
                yield _Found(name, "norm", norm.nodes[-1])


def _is_wanted(role: Role, options: RecoverOptions) -> bool:
    if options.parameters == "all" or role in ("bias", "norm"):
        return True
    return options.parameters == "low-rank" and role == "matrix"


def _first_names(graph: ir.Graph) -> Mapping[str, str]:
    """Return the first name of each stored tensor, by all its names."""
    firsts: dict[int, str] = {}
    return {
        name: firsts.setdefault(id(value.const_value), name)
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }


def _kept_weights(graph: ir.Graph) -> Mapping[str, str]:
    """Return the reason of each weight, by its first name, that a marked node reads: whoever else reads it too."""
    heads = _first_names(graph)
    named = {weight.name or "": nodes for weight, nodes in weight_readers(graph).items()}
    return {heads.get(name, name): kept(node) for name, nodes in named.items() for node in nodes if kept(node)}


def _obstacle(graph: ir.Graph, name: str) -> str:
    value = graph.initializers.get(name)
    if value is None or value.const_value is None:
        return "its weight is no initializer of the main graph"
    if value.const_value.dtype not in _FLOATS:
        return f"its weight is stored as {value.const_value.dtype.name} codes"
    if value.is_graph_input():
        return "its weight is an input of the graph"
    return ""


def _frozen(value: ir.Value, role: Role, options: RecoverOptions, protection: Protection | None) -> Mask | None:
    """Return the entries that stay: zeros of sparse weights, and protected places."""
    if value.const_value is None:
        return None
    array = value.const_value.numpy()
    frozen: Mask = np.zeros(array.shape, bool)
    # Biases start at zero in many networks; only where weights multiply is a zero somebody's decision.
    if not options.fills_zeros and role in ("matrix", "table"):
        frozen |= array == 0
    for axis, length in enumerate(array.shape) if protection is not None else ():
        places = sorted(protection.places(value.name or "", axis, length)) if protection is not None else []
        np.moveaxis(frozen, axis, 0)[places] = True
    return frozen if frozen.any() else None
