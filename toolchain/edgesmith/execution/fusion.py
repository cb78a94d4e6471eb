"""Groups of nodes that torch computes in one kernel. They are found when a graph is planned; the graph stays as it is.

A group is only taken as one if nobody else reads what lies inside it, so a tap inside a group keeps it apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from edgesmith.execution.operators.attention import scaled_dot_product
from edgesmith.execution.operators.quantization import fake_quantize
from edgesmith.execution.operators.registry import Site

Values = tuple[ir.Value | None, ...]


@dataclass(frozen=True, slots=True)
class Fused:
    """One call that stands for several nodes."""

    function: Callable[..., Any]
    inputs: Values
    absorbed: tuple[ir.Node, ...]
    """Nodes besides the last whose work the call does."""
    attributes: dict[str, Any] = field(default_factory=dict)
    site: ir.Node | None = None
    """The node that the function must know more about."""

    def bind(self, site: Callable[[ir.Node], Site]) -> Callable[..., Any]:
        """Return the function with its attributes bound."""
        extra = {"site": site(self.site)} if self.site is not None else {}
        return partial(self.function, **self.attributes, **extra)


@dataclass(frozen=True, slots=True)
class Fusions:
    """The groups of one graph, by their last node."""

    roots: dict[ir.Node, Fused] = field(default_factory=dict)
    absorbed: set[ir.Node] = field(default_factory=set)


def find_fusions(nodes: Sequence[ir.Node], keep: frozenset[ir.Value]) -> Fusions:
    """Return the groups among `nodes` that leave every value of `keep` computed."""
    found = Fusions()
    for node in nodes:
        match = _MATCHERS.get(node.op_type)
        fused = match(node, _Uses(keep)) if match is not None and node.domain in ("", "ai.onnx") else None
        if fused is not None and not found.absorbed.intersection(fused.absorbed):
            found.roots[node] = fused
            found.absorbed.update(fused.absorbed)
    return found


@dataclass(frozen=True, slots=True)
class _Uses:
    keep: frozenset[ir.Value]

    def inside(self, value: ir.Value | None, operator: str, readers: int = 1) -> ir.Node | None:
        """Return the node that makes `value`, if it is an `operator` whose result only this group reads."""
        if value is None or value in self.keep or len(value.uses()) != readers or value.is_graph_output():
            return None
        node = value.producer()
        return node if node is not None and node.op_type == operator and node.domain in ("", "ai.onnx") else None


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias."""
    return F.linear(x, weight.t(), bias)


def _match_linear(node: ir.Node, uses: _Uses) -> Fused | None:
    for value, bias in (node.inputs, node.inputs[::-1]):
        product = uses.inside(value, "MatMul")
        if (
            product is None
            or _rank(product.inputs[1]) != 2
            or _rank(bias) != 1
            or _rank(product.inputs[0]) in (None, 1)
        ):
            continue
        return Fused(linear, (*product.inputs, bias), (product,))
    return None


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, factor: Tensor | None, *, divide: bool) -> Tensor:
    """Return softmax(q @ k * factor + mask) @ v, where `k` comes with its last two axes swapped."""
    if factor is not None:
        q = q / factor if divide else q * factor
    if q.ndim == 4 and q.shape[:2] == k.shape[:2] == v.shape[:2] and q.is_floating_point():
        return scaled_dot_product(q, k.transpose(-1, -2), v, mask, scale=1.0)
    scores = torch.matmul(q, k) if mask is None else torch.matmul(q, k) + mask
    weights = torch.softmax(scores, -1)
    return torch.matmul(weights if mask is None else torch.where(weights.isnan(), 0, weights), v)


def _match_attention(node: ir.Node, uses: _Uses) -> Fused | None:
    absorbed: list[ir.Node] = []
    guard = uses.inside(node.inputs[0], "Where")
    weights = node.inputs[0]
    if guard is not None:
        test = uses.inside(guard.inputs[0], "IsNaN")
        if test is None or test.inputs[0] is not guard.inputs[2] or not _is_zero(guard.inputs[1]):
            return None
        absorbed += [guard, test]
        weights = guard.inputs[2]
    softmax = uses.inside(weights, "Softmax", 1 if guard is None else 2)
    if softmax is None or not _over_last_axis(softmax):
        return None
    absorbed.append(softmax)
    scores, mask = softmax.inputs[0], None
    total = uses.inside(scores, "Add")
    if total is not None and guard is not None:
        # Torch's kernel gives zeros where a query sees nothing. Without the guard the graph asks for NaN there.
        products = [value for value in total.inputs if uses.inside(value, "MatMul") is not None]
        if len(products) != 1:
            return None
        scores, mask = products[0], total.inputs[1 - total.inputs.index(products[0])]
        absorbed.append(total)
    factor, divide = None, False
    for operator in ("Mul", "Div"):
        scaled = uses.inside(scores, operator)
        if scaled is not None and _rank(scaled.inputs[1]) == 0:
            absorbed.append(scaled)
            scores, factor, divide = scaled.inputs[0], scaled.inputs[1], operator == "Div"
    product = uses.inside(scores, "MatMul")
    if product is None:
        return None
    q, k = product.inputs
    return Fused(attend, (q, k, node.inputs[1], mask, factor), (*absorbed, product), {"divide": divide})


def _is_zero(value: ir.Value | None) -> bool:
    constant = ir.convenience.get_const_tensor(value) if value is not None else None
    return constant is not None and constant.size == 1 and not constant.numpy().any()


def _over_last_axis(softmax: ir.Node) -> bool:
    axis = softmax.attributes.get("axis")
    rank = _rank(softmax.inputs[0])
    return axis is not None and axis.as_int() in (-1, rank - 1 if rank else -1)


def _match_fake_quantization(node: ir.Node, uses: _Uses) -> Fused | None:
    value = node.inputs[0]
    source = value.producer() if value is not None else None
    if source is None or value is None or source.op_type != "QuantizeLinear" or source.domain not in ("", "ai.onnx"):
        return None
    if any(attribute.is_ref() for attribute in (*source.attributes.values(), *node.attributes.values())):
        return None

    def plain(of: ir.Node) -> dict[str, Any]:
        return {name: attribute.value for name, attribute in of.attributes.items()}

    def three(of: ir.Node) -> Values:
        return (*of.inputs, None)[:3]

    # Who else reads the integers gets them from the QuantizeLinear node itself, which then stays.
    only_dequantized = all(use.node.op_type == "DequantizeLinear" for use in value.uses())
    last = only_dequantized and value not in uses.keep and not value.is_graph_output()
    return Fused(
        fake_quantize,
        (*three(source), *three(node)[1:]),
        (source,) if last and len(value.uses()) == 1 else (),
        {"quantize_attributes": plain(source), "dequantize_attributes": plain(node)},
        source,
    )


_MATCHERS: dict[str, Callable[[ir.Node, _Uses], Fused | None]] = {
    "Add": _match_linear,
    "MatMul": _match_attention,
    "DequantizeLinear": _match_fake_quantization,
}
