"""Divides products so that protected outputs and inputs are multiplied in float, and only the rest is quantized.

`x W = x R + x[P] W[P] + (x C) E`: R is W with zeros at protected places, W[P] the rows of protected inputs, C the
columns of protected outputs without these rows, and E puts them where they belong. That is exact before quantization,
and since every format here keeps zeros, nothing is added to protected places after it. The shape of R is that of W.
A product with zeros and ones is the fastest way to put columns in place that runtimes have: Gather copies number by
number, and takes longer than the whole product.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

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


def divide_protected(model: Model, layers: ProtectedLayers, nodes: Collection[str], notes: Notes) -> Model:
    """Return the model with each layer divided that holds protected places. Edits the graph it is given.

    What stays in float is marked, so that no later step changes it, and joins the protection among the assets.

    Args:
        model: A cloned model.
        layers: Of that model, or of one with the same nodes.
        nodes: Names of the products that will be quantized; others are not divided.
        notes: Told how much stays in float.
    """
    editor = GraphEditor(model.graph)
    added: list[ir.Value] = []
    count = floats = weights = 0
    chosen = frozenset(nodes)
    for site in find_weight_sites(model.graph, lambda _: "", Notes().skip):
        places = layers.split.get(node_name(site.readers[0])) if site.readers else None
        if places is None or chosen.isdisjoint(map(node_name, site.readers)):
            continue
        count += 1
        outputs, inputs = site.shape[site.output_axis], site.shape[site.input_axis]
        floats += round(places.share(outputs, inputs) * outputs * inputs)
        weights += outputs * inputs
        added += _divide(editor, site, places)
    if weights:
        notes.remark(
            f"Protected: {floats / weights:.1%} of the weights of {count} layers are multiplied in float "
            "beside the rest."
        )
    if layers.whole:
        notes.remark(f"Protected: {len(layers.whole)} layers stay in float altogether, as their reasons say.")
    return _protecting(model, added)


def _divide(editor: GraphEditor, site: WeightSite, places: Places) -> list[ir.Value]:
    """Divide one weight for all its readers; return the constants that hold protected numbers."""
    stored = constant_value(site.weight)
    if stored is None:  # sites hold constants only
        raise ValueError(site.name)
    rest = np.moveaxis(stored, (site.input_axis, site.output_axis), (0, 1)).copy()
    constants: dict[str, ir.Value] = {}
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
        constants |= _add_products(editor, node, places, constants)
    _replace(site.weight, np.moveaxis(rest, (0, 1), (site.input_axis, site.output_axis)))
    return list(constants.values())


def _add_products(
    editor: GraphEditor, node: ir.Node, places: Places, constants: Mapping[str, ir.Value]
) -> dict[str, ir.Value]:
    """Add the products in float of one reader; return further constants with protected numbers."""
    activation, name = node.inputs[0], node_name(node)
    if activation is None:  # a product has two inputs
        raise ValueError(name)
    further = {}
    if "columns" in constants:
        thin = editor.insert_before(node, "MatMul", (activation, constants["columns"]), name=f"{name}_protected")
        keep(thin, _KEPT)
        part = _typed(thin.outputs[0], activation, len(places.outputs))
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            further[f"bias of {name}"] = own = _take_bias(editor, node, bias, places.outputs)
            added = editor.insert_before(node, "Add", (part, own), name=f"{name}_protected_bias")
            part = _typed(added.outputs[0], activation, len(places.outputs))
        keep(add_beside(editor, node, part, constants["spread"], f"{name}_protected_outputs"), _KEPT)
    if "rows" in constants:
        chosen = editor.add_initializer(f"{name}_protected_channels", places.inputs)
        gather = editor.insert_before(node, "Gather", (activation, chosen), {"axis": -1}, name=f"{name}_protected_read")
        part = _typed(gather.outputs[0], activation, len(places.inputs))
        keep(add_beside(editor, node, part, constants["rows"], f"{name}_protected_inputs"), _KEPT)
    return further


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


def _replace(weight: ir.Value, array: NDArray[np.floating]) -> None:
    array, producer = np.ascontiguousarray(array), weight.producer()
    if producer is None:
        set_initializer(weight, array)
    else:  # a Constant
        producer.attributes["value"] = ir.AttrTensor("value", ir.tensor(array))


def _protecting(model: Model, constants: list[ir.Value]) -> Model:
    """Return the model whose protection, if it has one among its assets, names the constants too."""
    if PROTECTION_ASSET not in model.assets or not constants:
        return model
    shapes = {str(value.name): tuple(value.shape.numpy()) for value in constants if value.shape is not None}
    protection = Protection.chosen("units", model.assets).including(shapes)
    return replace(model, assets={**model.assets, PROTECTION_ASSET: protection.model_dump_json(indent=1).encode()})
