"""Operators that work position by position, with broadcasting."""

from collections.abc import Sequence

from edgesmith.graph.couplings.emitter import Emitter, Port
from edgesmith.graph.couplings.sizes import Dim, is_unknown

UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh"),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu"),
    *("Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"),
    *("Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Clip", "Dropout"),
)
BROADCASTING = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual"),
    *("Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor"),
)


def unary(e: Emitter) -> None:
    """One tensor in, one of the same shape out (bounds and ratios are scalars)."""
    source = e.input(0)
    for output in (e.output(index, rank=source.rank) for index, value in enumerate(e.node.outputs) if value.name):
        for axis in range(source.rank):
            e.same(source, axis, output, axis)


def broadcasting(e: Emitter) -> None:
    """Axes align from the right; an axis of length one carries nothing."""
    inputs = e.inputs()
    output = e.output(rank=max(port.rank for port in inputs))
    align(e, inputs, output, output.rank)


def align(e: Emitter, inputs: Sequence[Port], output: Port, count: int, skipped: int = 0) -> None:
    """Relate the axes of several inputs to those of the output by broadcasting.

    Args:
        e: Where to.
        inputs: Ports whose axes align from the right.
        output: The result.
        count: How many axes of the output take part.
        skipped: How many axes at the right, of inputs and output, do not.
    """
    for axis in range(skipped + 1, skipped + count + 1):
        dims = [port.dims[-axis] for port in inputs if port.rank >= axis]
        result = _broadcast(dims)
        if result is not None:
            e.sizes.learn(output.value, output.rank - axis, result)
    output = e.output()
    for port in inputs:
        for axis in range(skipped + 1, min(skipped + count, port.rank) + 1):
            e.same(port, -axis, output, -axis)


def _broadcast(dims: Sequence[Dim]) -> Dim | None:
    """Return the length that these lengths broadcast to, or None when it is not certain."""
    static = [dim for dim in dims if isinstance(dim, int) and dim != 1]
    if static:
        return static[0]
    dynamic = {dim for dim in dims if isinstance(dim, str)}
    if not dynamic:
        return 1 if dims else None
    known = {dim for dim in dynamic if not is_unknown(dim)}
    return next(iter(dynamic)) if len(dynamic) == 1 else next(iter(known)) if len(known) == 1 else None
