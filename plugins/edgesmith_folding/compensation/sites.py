"""Where least squares may act: output projections of the stream, and products put in place of removed runs."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.edit import GraphEditor, constant_value, set_initializer
from edgesmith.graph.linear import Linear
from edgesmith.graph.residual import Residual
from edgesmith_folding.finding.places import Place
from edgesmith_folding.finding.products import is_plain_product
from edgesmith_folding.removal import remove_run

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Site:
    """A matrix on the residual stream: `stream = base + input @ weight + bias`."""

    place: str
    """Where it is, for people."""
    folded: bool
    """Whether the layer was there before; otherwise a product was put in place of the run."""
    input: ir.Value
    base: ir.Value | None
    """What the layer's result is added to; None where it is the stream itself."""
    target: str
    """The value of the given graph that the stream should be here."""
    weight: ir.Value
    bias: ir.Value
    own_bias: bool
    """Whether the bias was there before."""
    transposed: bool
    """Whether the stored weight is [outputs, inputs]."""

    @property
    def form(self) -> str:
        """How it is written and what that added to the graph, for people."""
        if not self.folded:
            return "one MatMul, one Add"
        added = not self.own_bias and any(node.op_type == "Add" for node, _ in self.bias.uses())
        return "folded, one Add" if added else "folded, no new node"

    @property
    def matrix(self) -> Float64:
        """The layer, [inputs + 1, outputs]; the last row is the bias."""
        weight = np.asarray(constant_value(self.weight), np.float64)
        bias = np.asarray(constant_value(self.bias), np.float64).reshape(1, -1)
        return np.vstack([weight.T if self.transposed else weight, bias])

    def write(self, matrix: Float64) -> None:
        """Give the layer another matrix."""
        for value, array in ((self.weight, matrix[:-1].T if self.transposed else matrix[:-1]), (self.bias, matrix[-1])):
            old = np.asarray(constant_value(value))
            set_initializer(value, np.ascontiguousarray(array).reshape(old.shape).astype(old.dtype), value.dtype)


@dataclass(frozen=True, slots=True)
class Projection:
    """The linear layer that ends a branch: `stream = skip + (x @ weight + bias)`, with nothing behind it."""

    node: ir.Node
    """The product."""
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool
    """Whether the stored weight is [outputs, inputs]."""


def ending_projection(graph: ir.Graph, residual: Residual) -> Projection | None:
    """Return the projection that ends the branch of a residual connection; None where it does not add as it is.

    No normalization and no scale may follow it. Its weight must be one float matrix that no other layer reads.

    Args:
        graph: The graph that the connection was found in, or a copy of it.
        residual: The connection.
    """
    linears: list[Linear] = [mlp.down for mlp in residual.mlps]
    linears += [attention.output.linear for attention in residual.attentions if attention.output is not None]
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    ends = _same_numbers(values[residual.branch]) if residual.branch in values else set()
    linear = next((linear for linear in linears if linear.output in ends), None)
    if linear is None or residual.norm_after is not None or residual.norm_inside is not None:
        return None
    node = values[linear.product].producer() if linear.product in values else None
    weight = graph.initializers.get(linear.weight)
    if node is None or weight is None or node.inputs[1] is not weight or len(weight.uses()) != 1:
        return None
    if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or not is_plain_product(node):
        return None
    bias = None
    if linear.bias is not None:
        bias = graph.initializers.get(linear.bias)
        if bias is None or len(bias.uses()) != 1 or bias.dtype != weight.dtype:
            return None
    return Projection(node, weight, bias, node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)


def folded_site(graph: ir.Graph, place: Place, target: str) -> Site | None:
    """Return the projection that ends a block, with a bias; None where it does not add to the stream as it is.

    Args:
        graph: The graph to change; the block was found in it or in the graph it was copied from.
        place: The block.
        target: The value of the given graph that the stream should be behind it.
    """
    last = place.block.residuals[-1]
    found = ending_projection(graph, last)
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    if found is None or last.skip not in values or found.node.inputs[0] is None:
        return None
    bias = found.bias or _add_bias(graph, found)
    where = f"output projection of block {place.number}"
    return Site(
        where,
        True,
        found.node.inputs[0],
        values[last.skip],
        target,
        found.weight,
        bias,
        found.bias is not None,
        found.transposed,
    )


def product_site(graph: ir.Graph, run: tuple[Place, ...], width: int) -> Site:
    """Remove a run and put a product with the identity in its place.

    Args:
        graph: The graph to change.
        run: The run.
        width: Channels of the stream.
    """
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    source, target = values[run[0].block.input], values[run[-1].block.output]
    editor, stem = GraphEditor(graph), f"in_place_of_block_{run[0].number}"
    half = target.dtype == ir.DataType.FLOAT16
    kind = np.float16 if half else np.float32
    weight = editor.add_initializer(f"{stem}.weight", np.eye(width, dtype=kind))
    bias = editor.add_initializer(f"{stem}.bias", np.zeros(width, kind))
    product = editor.insert_after(source, "MatMul", (source, weight), name=f"{stem}.product")
    total = editor.insert_after(product.outputs[0], "Add", (product.outputs[0], bias), name=f"{stem}.add")
    for node in (product, total):
        node.outputs[0].shape, node.outputs[0].type = target.shape, target.type
    name = str(target.name)
    remove_run(graph, run, total.outputs[0])
    return Site(f"product in place of block {run[0].number}", False, source, None, name, weight, bias, False, False)


def drop_site(graph: ir.Graph, site: Site) -> None:
    """Take out what was put in for a site that is not used: a product with the identity, or a bias of zeros."""
    if site.own_bias:
        return
    editor = GraphEditor(graph)
    ((node, port),) = site.bias.uses()
    if node.op_type == "Add":
        editor.bypass(node, index=1 - port)
    else:
        node.resize_inputs(port)
    graph.initializers.pop(str(site.bias.name))
    if not site.folded:
        ((node, _),) = site.weight.uses()
        editor.bypass(node)
        graph.initializers.pop(str(site.weight.name))


def _same_numbers(value: ir.Value) -> set[str]:
    """Return the names of a value and of those that it is in another shape: some exporters flatten for products."""
    names = {str(value.name)}
    node = value.producer()
    while node is not None and node.op_type in ("Reshape", "Identity") and node.inputs[0] is not None:
        names.add(str(node.inputs[0].name))
        node = node.inputs[0].producer()
    return names


def _add_bias(graph: ir.Graph, projection: Projection) -> ir.Value:
    """Return a new bias of zeros."""
    editor, node = GraphEditor(graph), projection.node
    width = np.asarray(constant_value(projection.weight)).shape[0 if projection.transposed else 1]
    kind = np.float16 if projection.weight.dtype == ir.DataType.FLOAT16 else np.float32
    zeros = editor.add_initializer(f"{node.outputs[0].name}_bias", np.zeros(width, kind))
    if node.op_type == "Gemm":
        node.resize_inputs(3)
        node.replace_input_with(2, zeros)
    else:
        editor.insert_on_uses(node.outputs[0], "Add", (zeros,), name=f"{node.name}_add_bias")
    return zeros
