"""Finds the products that gain from eight-bit floats: layers with weights and the two products of attention.

Softmax, GELU, normalization, residual additions and embeddings keep their precision, because only inputs of products
are quantized; poolers and heads keep it by default. The limits of sizes are those of the kernels on FP8 hardware, as
NVIDIA's Model Optimizer applies them (its ONNX quantizer for FP8, version 0.47).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from edgesmith.graph.edit import constant_tensor
from edgesmith.graph.node_names import node_name
from edgesmith.graph.quantized import already_quantized
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.graph.weight_sites import WeightSite, find_weight_sites
from edgesmith.host.context import Notes
from edgesmith_quantization.finding.attention_products import head_sizes
from edgesmith_quantization.options.fp8 import QuantizeFp8Options

_LARGEST_HEAD = 256
_KERNEL_LIMIT = 32


@dataclass(frozen=True, slots=True)
class Float8Products:
    """What is quantized."""

    weights: tuple[WeightSite, ...]
    """Constant weights, each with all products that read it."""
    attention: tuple[ir.Node, ...]
    """Products of two activations, in graph order."""

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """All products."""
        return (*(node for site in self.weights for node in site.readers), *self.attention)

    def activations(self) -> tuple[ir.Value, ...]:
        """Return the inputs of the products that are computed, without repetition."""
        inputs = [site_reader.inputs[0] for site in self.weights for site_reader in site.readers]
        inputs += [value for node in self.attention for value in node.inputs[:2]]
        return tuple(dict.fromkeys(value for value in inputs if value is not None))


def find_float8_products(model: ir.Model, options: QuantizeFp8Options, notes: Notes) -> Float8Products:
    """Return what can be quantized; every product left alone gets its reason in `notes`."""
    structure = find_structure(model)
    reasons = Notes()
    sites = find_weight_sites(model.graph, options.obstacle, reasons.skip, operators=options.operators)
    kept = dict(_kept_in_float(structure, options))
    chosen = []
    for site in sites:
        obstacle = next(filter(None, (_layer_obstacle(node, site, kept, options) for node in site.readers)), "")
        if obstacle:
            for node in site.readers:
                reasons.skip(node_name(node), obstacle)
        else:
            chosen.append(site)
    weight_only = options.mode == "weight-only"
    attention = () if weight_only else tuple(_attention_products(model.graph, structure, options, reasons))
    taken = {node_name(node) for node in attention}
    for name, reason in reasons.skipped.items():
        if name not in taken:
            notes.skip(name, reason)
    return Float8Products(tuple(chosen), attention)


def _kept_in_float(structure: Structure, options: QuantizeFp8Options) -> Iterator[tuple[str, str]]:
    """Yield nodes that stay in high precision for what they are, with the reason."""
    for embedding in structure.embeddings:
        yield embedding.node, "it embeds the input"
    if not options.heads:
        for head in structure.heads:
            yield head.node, "it is the head; the option heads quantizes it"
            for linear in head.before:
                yield linear.node, "it stands between the blocks and the head; the option heads quantizes it"


def _layer_obstacle(node: ir.Node, site: WeightSite, kept: dict[str, str], options: QuantizeFp8Options) -> str:
    """Return why a product with a constant weight stays as it is, or an empty string."""
    if node_name(node) in kept:
        return kept[node_name(node)]
    activation = node.inputs[0]
    if activation is None:
        return "an input is missing"
    quantized = already_quantized(node)
    if quantized:
        return quantized
    if constant_tensor(activation) is not None:
        return "its first input is constant; weights must be the second"
    if node.op_type == "Conv":
        return _convolution_obstacle(site.shape, options.minimum_channels)
    if site.shape[site.output_axis] == 1 or _has_one_row(activation):
        return "it multiplies a vector, which is bound by memory and not by arithmetic"
    return ""


def _convolution_obstacle(shape: tuple[int, ...], minimum_channels: int) -> str:
    outputs, inputs, *kernel = shape
    if min(outputs, inputs) < minimum_channels:
        return f"it has {inputs} input and {outputs} output channels in a group; kernels want {minimum_channels}"
    size = 1
    for side in kernel:
        size *= side
    return f"its kernel has {size} elements, {_KERNEL_LIMIT} or more" if size >= _KERNEL_LIMIT else ""


def _has_one_row(activation: ir.Value) -> bool:
    sizes = list(activation.shape or ())[:-1]
    return bool(sizes) and all(size == 1 for size in sizes)


def _attention_products(
    graph: ir.Graph, structure: Structure, options: QuantizeFp8Options, notes: Notes
) -> Iterator[ir.Node]:
    """Yield the products of queries with keys and of probabilities with values that can be quantized."""
    sizes = head_sizes(structure)
    for node in graph:
        if node.name not in sizes or node.op_type == "QLinearMatMul":
            continue
        reason = options.obstacle(node_name(node)) or _attention_obstacle(node, sizes[node.name], options)
        if reason:
            notes.skip(node_name(node), reason)
        else:
            yield node


def _attention_obstacle(node: ir.Node, head_size: int | None, options: QuantizeFp8Options) -> str:
    if not options.attention:
        return "the option attention is off"
    if node.op_type != "MatMul" or node.domain != "":
        return f"products of activations written as {node.op_type} have no Q/DQ form"
    if head_size is not None and not options.minimum_head_size <= head_size <= _LARGEST_HEAD:
        return f"its heads have size {head_size}; kernels want {options.minimum_head_size} to {_LARGEST_HEAD}"
    values = [value for value in node.inputs if value is not None]
    quantized = already_quantized(node)
    if quantized:
        return quantized
    if any(value.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) for value in values):
        return f"its inputs are {', '.join(str(value.dtype) for value in values)}, not FLOAT or FLOAT16"
    return ""
