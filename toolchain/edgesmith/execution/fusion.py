"""Groups of nodes that torch computes in one kernel. They are found when a graph is planned; the graph stays as it is.

A group is only taken as one if nobody else reads what lies inside it, so a tap inside a group keeps it apart.
"""

import math
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
        matchers = _MATCHERS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
        fused = next(filter(None, (match(node, _Uses(keep)) for match in matchers)), None)
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


def _is_number(value: ir.Value | None, number: float, *, weights: bool = False) -> bool:
    """Return whether `value` is this constant. One that could be trained counts only if `weights` says so."""
    found = _number(value, weights=weights)
    return found is not None and abs(found - number) <= 1e-6 * abs(number)


def _number(value: ir.Value | None, *, weights: bool = False) -> float | None:
    if value is None or (value.is_initializer() and not weights):
        return None
    constant = ir.convenience.get_const_tensor(value)
    return float(constant.numpy().reshape(())) if constant is not None and constant.size == 1 else None


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias."""
    return F.linear(x, weight.t(), bias)


def _match_linear(node: ir.Node, uses: _Uses) -> Fused | None:
    for value, bias in (node.inputs, node.inputs[::-1]):
        product = uses.inside(value, "MatMul")
        if product is None or _rank(product.inputs[1]) != 2 or _rank(bias) != 1:
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
        if test is None or test.inputs[0] is not guard.inputs[2] or not _is_number(guard.inputs[1], 0.0, weights=True):
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


def _over_last_axis(node: ir.Node) -> bool:
    """Return whether a softmax or mean runs along the last axis and keeps it."""
    rank = _rank(node.inputs[0])
    last = (-1,) if rank is None else (-1, rank - 1)
    if node.op_type == "Softmax":
        axis = node.attributes.get("axis")
        return axis is not None and axis.as_int() in last
    keepdims = node.attributes.get("keepdims")
    axes = node.attributes.get("axes")
    if keepdims is not None and not keepdims.as_int():
        return False
    if axes is not None:
        return len(axes.as_ints()) == 1 and axes.as_ints()[0] in last
    return len(node.inputs) > 1 and any(_is_number(node.inputs[1], axis, weights=True) for axis in last)


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


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    """Return `x` normalized over its last axis."""
    return F.layer_norm(x, scale.shape, scale, bias, epsilon)


def _match_layer_norm(node: ir.Node, uses: _Uses) -> Fused | None:
    """Match what exporters wrote before opset 17: mean, difference, variance, root, quotient, scale and bias."""
    for value, bias in (node.inputs, node.inputs[::-1]):
        scaled = uses.inside(value, "Mul")
        for quotient, scale in (scaled.inputs, scaled.inputs[::-1]) if scaled is not None else ():
            chain = _normalized(quotient, uses)
            if scaled is not None and chain is not None and _rank(scale) == _rank(bias) == 1:
                x, epsilon, absorbed = chain
                return Fused(layer_norm, (x, scale, bias), (scaled, *absorbed), {"epsilon": epsilon})
    return None


def _normalized(value: ir.Value | None, uses: _Uses) -> tuple[ir.Value, float, list[ir.Node]] | None:
    """Return x, epsilon and the nodes of (x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon)."""
    divide = uses.inside(value, "Div")
    root = uses.inside(divide.inputs[1], "Sqrt") if divide is not None else None
    total = uses.inside(root.inputs[0], "Add") if root is not None else None
    variance = uses.inside(total.inputs[0], "ReduceMean") if total is not None else None
    square = uses.inside(variance.inputs[0], "Pow") if variance is not None else None
    if divide is None or root is None or total is None or variance is None or square is None:
        return None
    difference = uses.inside(square.inputs[0], "Sub", readers=2)
    mean = uses.inside(difference.inputs[1], "ReduceMean") if difference is not None else None
    epsilon = _number(total.inputs[1])
    if difference is None or mean is None or epsilon is None or not _is_number(square.inputs[1], 2.0):
        return None
    x = mean.inputs[0]
    same = divide.inputs[0] is square.inputs[0] and difference.inputs[0] is x
    if x is None or not same or not (_over_last_axis(mean) and _over_last_axis(variance)):
        return None
    return x, epsilon, [divide, root, total, variance, square, difference, mean]


def _match_gelu(node: ir.Node, uses: _Uses) -> Fused | None:
    """Match x * (1 + erf(x / sqrt(2))) * 0.5, in any order of the factors."""
    factors, absorbed = list(node.inputs), []
    for value in node.inputs:
        product = uses.inside(value, "Mul")
        if product is not None:
            factors.remove(value)
            factors += product.inputs
            absorbed.append(product)
            break
    halves = [value for value in factors if _is_number(value, 0.5)]
    sums = [total for total in (uses.inside(value, "Add") for value in factors) if total is not None]
    # The argument may be a sum itself; the sum that counts is the one over an Erf.
    sums = [total for total in sums if any(uses.inside(value, "Erf") for value in total.inputs)]
    if len(factors) != 3 or len(halves) != 1 or len(sums) != 1:
        return None
    (x,) = [value for value in factors if value is not halves[0] and value is not sums[0].outputs[0]]
    (error,) = [found for found in (uses.inside(value, "Erf") for value in sums[0].inputs) if found is not None]
    if not any(_is_number(value, 1.0) for value in sums[0].inputs):
        return None
    for operator, number in (("Div", math.sqrt(2)), ("Mul", math.sqrt(0.5))):
        scaled = uses.inside(error.inputs[0], operator)
        if scaled is not None and scaled.inputs[0] is x and _is_number(scaled.inputs[1], number):
            return Fused(F.gelu, (x,), (*absorbed, sums[0], error, scaled))
    return None


_MATCHERS: dict[str, tuple[Callable[[ir.Node, _Uses], Fused | None], ...]] = {
    "Add": (_match_linear, _match_layer_norm),
    "Mul": (_match_gelu,),
    "MatMul": (_match_attention,),
    "DequantizeLinear": (_match_fake_quantization,),
}
