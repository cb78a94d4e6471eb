"""Linear layers that can be solved for, each with the layer of the source that it came from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.linear import Linear
from edgesmith.graph.structure import Structure
from edgesmith.host.context import Notes
from edgesmith_recovery.finding.weights import TrainedWeight

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of the student, with what may change in it."""

    linear: Linear
    target: str
    """Value of the source that its output should equal."""
    free: NDArray[np.bool_]
    """Places that may change, [inputs + 1, outputs]; the last row is the bias."""

    def matrix(self, graph: ir.Graph) -> Float64:
        """Return the layer as it is in `graph`, [inputs + 1, outputs]; without a bias, the last row is 0."""
        stored = _array(graph, self.linear.weight)
        weight = stored.T if self.linear.weight_axis == 0 else stored
        bias = np.zeros(1) if self.linear.bias is None else _array(graph, self.linear.bias).reshape(-1)
        return np.vstack([weight, np.broadcast_to(bias, weight.shape[1])])


def find_layers(
    graph: ir.Graph, student: Structure, teacher: Structure, weights: Iterable[TrainedWeight], notes: Notes
) -> list[tuple[Layer, ...]]:
    """Return the layers in the order of the data; those that read the same value together.

    A layer is left alone, with a note, where the source has none of its name and width, where its weight is shared, or
    where nothing in it may change.
    """
    known = {linear.node: linear for linear in teacher.linears}
    trained = {weight.name: weight for weight in weights}
    layers = []
    for linear in student.linears:
        weight = trained.get(linear.weight)
        bias = trained.get(linear.bias or "")
        if weight is None and bias is None:
            continue
        target = known.get(linear.node)
        reason = _obstacle(graph, linear, target)
        if reason or target is None:
            notes.skip(linear.node, reason)
            continue
        layers.append(Layer(linear, target.output, _free(graph, linear, weight, bias)))
    for convolution in student.convolutions:
        if convolution.weight in trained:
            notes.skip(convolution.node, "closed forms are for linear layers; train it with how: blocks or distill")
    return [tuple(group) for _, group in groupby(layers, key=lambda layer: layer.linear.input)]


def written(layer: Layer, graph: ir.Graph, matrix: Float64) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the initializers that hold a layer, by name, with the numbers of `matrix` in their stored form."""
    names = ((layer.linear.weight, matrix[:-1]), (layer.linear.bias, matrix[-1]))
    for name, part in names:
        if name is None:
            continue
        old = _stored(graph, name)
        transposed = name == layer.linear.weight and layer.linear.weight_axis == 0
        yield name, (part.T if transposed else part).reshape(old.shape).astype(old.dtype)


def _free(
    graph: ir.Graph, linear: Linear, weight: TrainedWeight | None, bias: TrainedWeight | None
) -> NDArray[np.bool_]:
    free = np.zeros((linear.in_features + 1, linear.out_features), bool)
    if weight is not None:
        frozen = np.zeros(_stored(graph, linear.weight).shape, bool) if weight.frozen is None else weight.frozen
        free[:-1] = ~(frozen.T if linear.weight_axis == 0 else frozen)
    if bias is not None and not _is_shared(graph, bias.name):
        free[-1] = True if bias.frozen is None else ~bias.frozen.reshape(-1)
    return free


def _obstacle(graph: ir.Graph, linear: Linear, target: Linear | None) -> str:
    """Return why a layer stays as it is, or an empty string."""
    if target is None:
        return "the source has no layer of its name"
    if target.out_features != linear.out_features:
        return f"it has {linear.out_features} outputs and its source {target.out_features}"
    if linear.weight_axis is None or linear.weight not in graph.initializers:
        return "its weight is computed from other weights"
    if _is_shared(graph, linear.weight):
        return "its weight is shared with other layers, whose inputs are others"
    node = next((node for node in graph if node.name == linear.node), None)
    if node is None:
        return "it stands in the body of a control-flow operator"
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return "its operator multiplies with alpha or beta"
    if node.attributes.get_int("transA", 0):
        return "its operator transposes what it reads"
    return ""


def _is_shared(graph: ir.Graph, name: str) -> bool:
    tensor = graph.initializers[name].const_value
    return sum(len(value.uses()) for value in graph.initializers.values() if value.const_value is tensor) > 1


def _stored(graph: ir.Graph, name: str) -> NDArray[np.generic]:
    tensor = graph.initializers[name].const_value
    if tensor is None:  # `find_weights` names initializers with data only
        raise ValueError(name)
    array: NDArray[np.generic] = tensor.numpy()
    return array


def _array(graph: ir.Graph, name: str) -> Float64:
    return _stored(graph, name).astype(np.float64)
