"""Finds the layers whose weights can be made sparse, as matrices [outputs, inputs]; says why others stay dense."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_tensor, set_initializer
from edgesmith.graph.structure import Structure
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites, leave_alone
from edgesmith.host.context import Notes
from edgesmith.mapped import WeightFile
from edgesmith.protection import Protection
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.sparsity.masks import Mask, Pattern

Array = NDArray[np.floating]

_SMALLEST = 64
"""Weights of fewer entries stay dense: there is nothing to gain."""


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """One weight with the values that it multiplies and the bias behind it."""

    site: WeightSite
    sources: tuple[str, ...]
    """Names of the values that it is multiplied with; several where layers share it, none where they are unknown."""
    bias: ir.Value | None
    """An initializer that only this layer adds, one number for each output."""
    head: bool
    """Whether it makes an output of the graph."""

    @property
    def name(self) -> str:
        """Name of the weight."""
        return self.site.name

    def matrix(self) -> Array:
        """Return the weight as [outputs, inputs]; of a kernel, the channels of one place stand together."""
        return self.arranged(np.asarray(_tensor(self.site).numpy()))

    def arranged(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array of the shape of the weight as [outputs, inputs], in the order of `matrix`."""
        moved = np.moveaxis(array, *self._axes)
        return moved.reshape(moved.shape[0], -1)

    def stored(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Return a matrix [outputs, inputs] in the shape of the weight; undoes `arranged`."""
        shape = np.moveaxis(np.empty(self.site.shape, np.bool_), *self._axes).shape
        return np.ascontiguousarray(np.moveaxis(matrix.reshape(shape), *reversed(self._axes)))

    def write(self, matrix: Array, bias_change: Array | None, weights: WeightFile) -> None:
        """Store another weight and add to the bias, in the types that they have."""
        array = self.stored(matrix).astype(_tensor(self.site).numpy().dtype)
        set_initializer(self.site.weight, weights.keep(ir.tensor(array, name=self.site.weight.name)))
        if self.bias is not None and bias_change is not None:
            old = np.asarray(constant_tensor(self.bias).numpy())  # type: ignore[union-attr]
            set_initializer(self.bias, (old + bias_change.reshape(old.shape)).astype(old.dtype))

    @property
    def _axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The axes of outputs and inputs, and where they go: first and last."""
        return (self.site.output_axis, self.site.input_axis), (0, -1)


def find_sparse_layers(
    model: ir.Model, structure: Structure, options: PruneWeightsOptions, notes: Notes
) -> tuple[SparseLayer, ...]:
    """Return the layers that can be pruned, in graph order.

    Args:
        model: The graph.
        structure: What it is made of.
        options: What to prune, and in which pattern.
        notes: Receives the reason for every product that is left alone.
    """
    biases = _biases(model.graph, structure)
    heads = {head.node for head in structure.heads}
    pattern = Pattern.parse(options.pattern)
    found = []
    for site in find_weight_sites(model.graph, options.obstacle, notes.skip, operators=options.operators):
        head = any(node.name in heads for node in site.readers)
        sources = _sources(site)
        reason = _obstacle(site, pattern) or ("" if options.heads or not head else "it makes an output (option heads)")
        if not reason and options.needs.data and not sources:
            reason = "what it multiplies is transposed or constant; criterion magnitude without refit needs no inputs"
        if reason:
            leave_alone(site, reason, notes.skip)
        else:
            bias = biases.get(site.readers[0].name or "") if len(site.readers) == 1 else None
            found.append(SparseLayer(site, sources, bias, head))
    return tuple(found)


def own_initializers(graph: ir.Graph, layers: tuple[SparseLayer, ...]) -> None:
    """Turn weights that Constant nodes hold into initializers, which can be given other numbers. Edits the graph."""
    editor = GraphEditor(graph)
    for layer in layers:
        value = layer.site.weight
        if value.producer() is not None:
            editor.replace_uses(value, editor.add_initializer(f"{value.name}_weight", _tensor(layer.site)))


def protected_mask(layer: SparseLayer, protection: Protection) -> Mask:
    """Return which weights [outputs, inputs] must stay: all of protected outputs, and those that read protected inputs.

    Raises:
        RecipeError: The protection was made for another model.
    """
    stays = np.zeros(layer.site.shape, bool)
    for axis in (layer.site.output_axis, layer.site.input_axis):
        places = protection.places(layer.name, axis, stays.shape[axis])
        np.moveaxis(stays, axis, 0)[list(places)] = True
    return np.ascontiguousarray(layer.arranged(stays))


def _obstacle(site: WeightSite, pattern: Pattern | None) -> str:
    groups = {node.attributes.get_int("group", 1) for node in site.readers if node.op_type == "Conv"}
    if groups - {1}:
        return "it sums within groups of channels, which are few" if site.shape[1] > 1 else "it reads one channel each"
    size, width = int(np.prod(site.shape)), site.shape[site.input_axis]
    if size < _SMALLEST:
        return f"it has {size} weights only"
    if pattern is not None and width % pattern.group:
        return f"its {width} inputs are not a multiple of {pattern.group}"
    if not np.isfinite(_tensor(site).numpy()).all():
        return "its weight holds NaN or infinity"
    return ""


def _sources(site: WeightSite) -> tuple[str, ...]:
    """Return the names of what is multiplied, or nothing where inputs do not stand where a matrix sums over them."""
    values = list(dict.fromkeys(node.inputs[0] for node in site.readers))
    transposed = any(node.op_type == "Gemm" and node.attributes.get_int("transA", 0) for node in site.readers)
    if transposed or any(value is None or not value.name or constant_tensor(value) is not None for value in values):
        return ()
    return tuple(str(value.name) for value in values if value is not None)


def _biases(graph: ir.Graph, structure: Structure) -> Mapping[str, ir.Value]:
    """Return the bias of each layer, by its node, where nobody else reads it and nothing scales it."""
    named = {linear.node: linear.bias for linear in structure.linears}
    named |= {convolution.node: convolution.bias for convolution in structure.convolutions}
    outputs = {linear.node: linear.out_features for linear in structure.linears}
    outputs |= {convolution.node: convolution.out_channels for convolution in structure.convolutions}
    nodes = {node.name: node for node in graph}
    found = {}
    for node, name in named.items():
        value = graph.initializers.get(name or "")
        if value is None or node not in nodes or len(tuple(value.uses())) != 1 or value.is_graph_output():
            continue
        scaled = any(nodes[node].attributes.get_float(key, 1.0) != 1 for key in ("alpha", "beta"))
        tensor = constant_tensor(value)
        if tensor is not None and not scaled and tensor.dtype.is_floating_point() and tensor.size == outputs[node]:
            found[node] = value
    return found


def _tensor(site: WeightSite) -> ir.TensorProtocol:
    tensor = constant_tensor(site.weight)
    if tensor is None:  # sites hold constants only
        raise ValueError(site.name)
    return tensor
