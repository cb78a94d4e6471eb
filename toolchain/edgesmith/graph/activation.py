"""Activation functions, recognised by what they compute and not by how an exporter wrote them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgesmith.graph.dataflow import BINARY, CARRYING, ELEMENTWISE, Dataflow

Array = NDArray[Any]

_PROBE = np.linspace(-8, 8, 129)
_TOLERANCE = 1e-4
_RESHAPING = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
# Operators that ONNX's reference evaluator does not know, among them those of ONNX Runtime.
_NAMED = {"FastGelu": "gelu_tanh", "QuickGelu": "quick_gelu", "Gelu": "gelu"}


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _erf(x: Array) -> Array:
    # Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26; error below 1.5e-7.
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series: Array = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return np.asarray(np.sign(x) * (1 - series * np.exp(-x * x)))


_FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "hard_swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "softplus": lambda x: np.log1p(np.exp(x)),
}


def activation_between(flow: Dataflow, source: ir.Value, target: ir.Value) -> str | None:
    """Return the name of the function that leads from one value to another, element by element.

    The nodes between are run on a grid of numbers from -8 to 8, and the result is compared with the known functions.

    Returns:
        A name, "unknown" for a function that is element by element but not known, or None when it is not.
    """
    return classify(_PROBE, evaluate_elementwise(flow, {source: _PROBE}, target))


def gate_between(flow: Dataflow, gate: ir.Value, up: ir.Value, target: ir.Value) -> str | None:
    """Return the activation of a gated layer `target = activation(gate) * up`, or None when it is no such product."""
    ones = np.ones_like(_PROBE)
    single = evaluate_elementwise(flow, {gate: _PROBE, up: ones}, target)
    triple = evaluate_elementwise(flow, {gate: _PROBE, up: -3 * ones}, target)
    if single is None or triple is None or not np.allclose(-3 * single, triple, atol=_TOLERANCE):
        return None
    return classify(_PROBE, single)


def activation_after(flow: Dataflow, value: ir.Value) -> tuple[str, ir.Value] | None:
    """Return the activation function that directly follows a value, with its output; None when there is none."""
    reached: dict[ir.Value, None] = {value: None}
    while True:
        users = [node for each in reached for node in flow.users(each)]
        new = [
            node.outputs[0]
            for node in users
            if node.op_type in ELEMENTWISE | CARRYING
            and node.outputs[0] not in reached
            and all(source in reached or flow.is_constant(source) for source in node.inputs)
            and _is_scalar_function(flow, node)
        ]
        if not new:
            break
        reached.update(dict.fromkeys(new))
    exits = [
        each
        for each in reached
        if each.is_graph_output() or any(node.outputs[0] not in reached for node in flow.users(each))
    ]
    if len(exits) != 1 or exits[0] is value:
        return None
    name = activation_between(flow, value, exits[0])
    return None if name in (None, "identity") else (name, exits[0])  # type: ignore[return-value]


def evaluate_elementwise(flow: Dataflow, given: Mapping[ir.Value, Array], target: ir.Value) -> Array | None:
    """Return `target` for vectors of numbers given at other values; None when it does not follow from them alone.

    Reshaping and quantization between them are taken as the identity.
    """
    results: dict[ir.Value, Array] = {value: array.astype(np.float32) for value, array in given.items()}
    pending = [target]
    while pending:
        value = pending[-1]
        if value in results:
            pending.pop()
            continue
        number = flow.number(value)
        node = value.producer()
        if number is not None:
            results[value] = np.asarray(number, np.float32)
            continue
        if node is None:
            return None
        passing = node.op_type in CARRYING | _RESHAPING
        if not passing and node.op_type not in ELEMENTWISE:
            return None
        needed = [source for source in (node.inputs[:1] if passing else node.inputs) if source is not None]
        missing = [source for source in needed if source not in results]
        if missing:
            pending.extend(missing)
            continue
        result = results[needed[0]] if passing else _run(flow, node, results)
        if result is None:
            return None
        results[value] = result
    return results[target]


def classify(probe: Array, result: Array | None) -> str | None:
    """Return the name of the known function that maps `probe` to `result`; "unknown" or None otherwise."""
    if result is None or result.shape != probe.shape:
        return None
    for name, function in _FUNCTIONS.items():
        if np.allclose(function(probe), result, atol=_TOLERANCE):
            return name
    return "unknown"


def _run(flow: Dataflow, node: ir.Node, arrays: Mapping[ir.Value, Array]) -> Array | None:
    name = _NAMED.get(node.op_type)
    if name is not None and len(flow.dynamic_inputs(node)) == 1 and node.inputs[0] is not None:
        approximate = "approximate" in node.attributes and node.attributes["approximate"].as_string() == "tanh"
        return _FUNCTIONS["gelu_tanh" if approximate else name](arrays[node.inputs[0]]).astype(np.float32)
    outputs = flow.shapes.run(node, arrays)
    return None if outputs is None else outputs[node.outputs[0]]


def _is_scalar_function(flow: Dataflow, node: ir.Node) -> bool:
    """Whether the constants of an elementwise node are single numbers, so that every channel is treated alike."""
    if node.op_type not in BINARY:
        return True
    constants: Sequence[ir.Value | None] = [source for source in node.inputs if flow.is_constant(source)]
    return all(flow.number(source) is not None for source in constants)
