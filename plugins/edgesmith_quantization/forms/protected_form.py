"""Divides products so that protected outputs and inputs are multiplied in float, and only the rest is quantized.

`x W = x R + x[P] W[P] + (x C) E`: R is W with zeros at protected places, W[P] the rows of protected inputs, C the
columns of protected outputs without these rows, and E puts them where they belong. That is exact before quantization,
and since every format here keeps zeros, nothing is added to protected places after it. The shape of R is that of W.
A product with zeros and ones is the fastest way to put columns in place that runtimes have: Gather copies number by
number, and takes longer than the whole product.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_value, set_initializer
from edgesmith.graph.kept import keep
from edgesmith.graph.node_names import node_name
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites
from edgesmith.host.context import Notes
from edgesmith.model import Model
from edgesmith.protection import PROTECTION_ASSET, Protection
from edgesmith_quantization.finding.protected_layers import Places, ProtectedLayers
from edgesmith_quantization.forms.side_products import add_beside

_KEPT = "its weight is protected"


@dataclass(frozen=True, slots=True, eq=False)
class _Divided:
    """A weight that was divided, with what brings it back together."""

    site: WeightSite
    places: Places
    shape: tuple[int, int]
    """Outputs and inputs."""
    constants: dict[str, ir.Value] = field(default_factory=dict)
    """What holds protected numbers: rows, columns and spread, and biases by the node that reads them."""
    sums: list[ir.Node] = field(default_factory=list)
    """Additions of the products in float, in the order in which they were added."""
    biases: dict[ir.Node, ir.Value] = field(default_factory=dict)
    """Biases as they were, of the nodes whose bias was divided."""


@dataclass(frozen=True, slots=True)
class Division:
    """A model in which layers with protected places are divided."""

    model: Model
    _layers: ProtectedLayers
    _divided: tuple[_Divided, ...]

    def finish(self, quantized: Collection[str], notes: Notes) -> Model:
        """Return the model with only those layers divided of which something was quantized. Edits its graph.

        Call it before unused nodes are removed. What stays in float beside the rest joins the protection among the
        assets.

        Args:
            quantized: Names of the products that were quantized.
            notes: Told how much stays in float, and what the model does not have.
        """
        chosen, editor = frozenset(quantized), GraphEditor(self.model.graph)
        remaining = []
        for each in self._divided:
            if chosen.isdisjoint(map(node_name, each.site.readers)):
                _join(editor, each)
            else:
                remaining.append(each)
        shares = [_counts(each) for each in remaining]
        if shares:
            share = sum(floats for floats, _ in shares) / sum(weights for _, weights in shares)
            notes.remark(
                f"Protected: {share:.1%} of the weights of {len(shares)} layers are multiplied in float "
                "beside the rest."
            )
        self._layers.remark(notes)
        return _protecting(self.model, [value for each in remaining for value in each.constants.values()])


def divide_protected(model: Model, layers: ProtectedLayers, nodes: Collection[str]) -> Division:
    """Divide each layer that holds protected places. Edits the graph it is given.

    What stays in float is marked, so that no later step changes it.

    Args:
        model: A cloned model.
        layers: Of that model, or of one with the same nodes.
        nodes: Names of the products that will be quantized; others are not divided.
    """
    editor = GraphEditor(model.graph)
    divided = []
    chosen = frozenset(nodes)
    for site in find_weight_sites(model.graph, lambda _: "", Notes().skip):
        places = layers.split.get(node_name(site.readers[0])) if site.readers else None
        if places is not None and not chosen.isdisjoint(map(node_name, site.readers)):
            divided.append(_divide(editor, site, places))
    return Division(model, layers, tuple(divided))


def _counts(divided: _Divided) -> tuple[int, int]:
    """Return how many numbers of a weight stay in float, and how many it has."""
    outputs, inputs = divided.shape
    return round(divided.places.share(outputs, inputs) * outputs * inputs), outputs * inputs


def _divide(editor: GraphEditor, site: WeightSite, places: Places) -> _Divided:
    """Divide one weight for all its readers."""
    rest = _matrix(site)
    divided = _Divided(site, places, (rest.shape[1], rest.shape[0]))
    constants = divided.constants
    if len(places.inputs):
        constants["rows"] = editor.add_initializer(f"{site.name}_protected_inputs", rest[places.inputs])
        rest[places.inputs] = 0
    if len(places.outputs):
        columns = np.ascontiguousarray(rest[:, places.outputs])
        constants["columns"] = editor.add_initializer(f"{site.name}_protected_outputs", columns)
        rest[:, places.outputs] = 0
        spread = np.zeros((len(places.outputs), rest.shape[1]), rest.dtype)
        spread[np.arange(len(places.outputs)), places.outputs] = 1
        constants["spread"] = editor.add_initializer(f"{site.name}_protected_places", spread)
    for node in site.readers:
        _add_products(editor, node, divided)
    _replace(site, rest)
    return divided


def _join(editor: GraphEditor, divided: _Divided) -> None:
    """Make a divided layer what it was; the products in float are left without readers."""
    rest, places, constants = _matrix(divided.site), divided.places, divided.constants
    for key, index in (("columns", (slice(None), places.outputs)), ("rows", (places.inputs,))):
        stored = constant_value(constants.get(key))
        if stored is not None:
            rest[index] = stored
    _replace(divided.site, rest)
    for node, bias in divided.biases.items():
        node.replace_input_with(2, bias)
    for node in reversed(divided.sums):
        total = node.inputs[0]
        if total is None:  # a sum has two inputs
            raise ValueError(node_name(node))
        editor.replace_uses(node.outputs[0], total)


def _matrix(site: WeightSite) -> NDArray[np.floating]:
    """Return a copy of a weight, [inputs, outputs]."""
    stored = constant_value(site.weight)
    if stored is None:  # sites hold constants only
        raise ValueError(site.name)
    return np.moveaxis(stored, (site.input_axis, site.output_axis), (0, 1)).copy()


def _add_products(editor: GraphEditor, node: ir.Node, divided: _Divided) -> None:
    """Add the products in float of one reader; `divided` is told what joins it again."""
    activation, name = node.inputs[0], node_name(node)
    places, constants, sums = divided.places, divided.constants, divided.sums
    if activation is None:  # a product has two inputs
        raise ValueError(name)
    if "columns" in constants:
        thin = editor.insert_before(node, "MatMul", (activation, constants["columns"]), name=f"{name}_protected")
        keep(thin, _KEPT)
        part = _typed(thin.outputs[0], activation, len(places.outputs))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            divided.biases[node] = bias
            constants[f"bias of {name}"] = own = _take_bias(editor, node, bias, places.outputs)
            added = editor.insert_before(node, "Add", (part, own), name=f"{name}_protected_bias")
            part = _typed(added.outputs[0], activation, len(places.outputs))
        sums.append(_beside(editor, node, part, constants["spread"], f"{name}_protected_outputs"))
    if "rows" in constants:
        chosen = editor.add_initializer(f"{name}_protected_channels", places.inputs)
        gather = editor.insert_before(node, "Gather", (activation, chosen), {"axis": -1}, name=f"{name}_protected_read")
        part = _typed(gather.outputs[0], activation, len(places.inputs))
        sums.append(_beside(editor, node, part, constants["rows"], f"{name}_protected_inputs"))


def _beside(editor: GraphEditor, node: ir.Node, factor: ir.Value, matrix: ir.Value, name: str) -> ir.Node:
    """Add a product in float, marked, and return the node that adds it."""
    product = add_beside(editor, node, factor, matrix, name)
    keep(product, _KEPT)
    ((addition, _),) = product.outputs[0].uses()
    return addition


def _take_bias(editor: GraphEditor, node: ir.Node, bias: ir.Value, outputs: NDArray[np.int64]) -> ir.Value:
    """Move the bias of protected outputs out of a Gemm: a bias may be stored in the step of the weight's codes."""
    array = constant_value(bias)
    if array is None:  # `find_protected` takes constants only
        raise ValueError(bias.name)
    rest = array.reshape(-1).copy()
    own = editor.add_initializer(f"{bias.name}_protected", rest[outputs])
    rest[outputs] = 0
    node.replace_input_with(2, editor.add_initializer(f"{bias.name}_rest", rest.reshape(array.shape)))
    return own


def _typed(value: ir.Value, like: ir.Value, width: int) -> ir.Value:
    value.type = like.type
    value.shape = None if like.shape is None else ir.Shape([*like.shape[:-1], width])
    return value


def _replace(site: WeightSite, matrix: NDArray[np.floating]) -> None:
    """Store [inputs, outputs] as the weight."""
    array = np.ascontiguousarray(np.moveaxis(matrix, (0, 1), (site.input_axis, site.output_axis)))
    producer = site.weight.producer()
    if producer is None:
        set_initializer(site.weight, array)
    else:  # a Constant
        producer.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _protecting(model: Model, constants: list[ir.Value]) -> Model:
    """Return the model whose protection, if it has one among its assets, names the constants too."""
    if PROTECTION_ASSET not in model.assets or not constants:
        return model
    shapes = {str(value.name): tuple(value.shape.numpy()) for value in constants if value.shape is not None}
    protection = Protection.chosen("units", model.assets).including(shapes)
    return replace(model, assets={**model.assets, PROTECTION_ASSET: protection.model_dump_json(indent=1).encode()})
