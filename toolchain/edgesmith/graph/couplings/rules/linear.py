"""Operators that sum over channels with weights, or multiply two activations."""

from edgesmith.graph.couplings.emitter import Emitter, Port
from edgesmith.graph.couplings.rules.elementwise import align


def matmul(e: Emitter) -> None:
    """[.., M, K] by [.., K, N]: K is shared and vanishes, M and N go on, leading axes broadcast."""
    left, right = e.input(0), e.input(1)
    lost = (left.rank == 1) + (right.rank == 1)
    output = e.output(rank=max(left.rank, right.rank, 2) - lost)
    shared = -2 if right.rank > 1 else 0
    e.same(left, -1, right, shared)
    e.role(left.axis(-1), "consumes")
    e.role(right.axis(shared), "consumes")
    if left.rank > 1:
        e.same(left, -2, output, -2 if right.rank > 1 else -1)
        e.role(left.axis(-2), "produces")
    if right.rank > 1:
        e.same(right, -1, output, -1)
        e.role(right.axis(-1), "produces")
    if left.rank > 1 and right.rank > 1:
        align(e, [left, right], output, output.rank - 2, skipped=2)


def gemm(e: Emitter) -> None:
    """A (or its transpose) by B (or its transpose), plus a broadcast C."""
    left, right, output = e.input(0), e.input(1), e.output(rank=2)
    rows, inner = (1, 0) if e.node.attributes.get_int("transA", 0) else (0, 1)
    shared, columns = (1, 0) if e.node.attributes.get_int("transB", 0) else (0, 1)
    e.same(left, inner, right, shared)
    e.same(left, rows, output, 0)
    e.same(right, columns, output, 1)
    for port, made, summed in ((left, rows, inner), (right, columns, shared)):
        e.role(port.axis(made), "produces")
        e.role(port.axis(summed), "consumes")
    addend = e.optional(2)
    if addend is not None:
        align(e, [addend], output, 2)
        for axis in addend.axes():
            e.role(axis, "produces")


def convolution(e: Emitter) -> None:
    """Weights [out, in / groups, *kernel]: whole groups, or the same place in each group, can go."""
    source, weight = e.input(0), e.input(1)
    output, groups = e.output(rank=source.rank), e.node.attributes.get_int("group", 1)
    _batch_and_space(e, source, weight, output)
    e.same(weight, 0, output, 1)
    if groups == 1:
        e.same(source, 1, weight, 1)
    else:
        group = e.helper(groups)
        e.product(source.axis(1), [group, weight.axis(1)])
        e.product(weight.axis(0), [group, e.helper(_length(weight, 0) // groups)])
    depthwise = groups > 1 and weight.dims[1] == 1
    e.role(weight.axis(0), "passes" if depthwise else "produces")
    e.role(weight.axis(1), "consumes")
    _bias(e, output)


def transposed_convolution(e: Emitter) -> None:
    """Weights [in, out / groups, *kernel]."""
    source, weight = e.input(0), e.input(1)
    output, groups = e.output(rank=source.rank), e.node.attributes.get_int("group", 1)
    _batch_and_space(e, source, weight, output)
    e.same(source, 1, weight, 0)
    if groups == 1:
        e.same(weight, 1, output, 1)
    else:
        group = e.helper(groups)
        e.product(output.axis(1), [group, weight.axis(1)])
        e.product(weight.axis(0), [group, e.helper(_length(weight, 0) // groups)])
    depthwise = groups > 1 and weight.dims[1] == 1
    e.role(weight.axis(0), "passes" if depthwise else "consumes")
    e.role(weight.axis(1), "produces")
    _bias(e, output)


def einsum(e: Emitter) -> None:
    """Equal letters are equal channels. A letter that the result lacks is summed over."""
    equation = e.node.attributes["equation"].as_string().replace(" ", "")
    if "..." in equation:
        e.fix_all("an einsum with an ellipsis has no channel rule")
        return
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if not right and "->" not in equation:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    output = e.output(rank=len(right))
    first: dict[str, tuple[Port, int]] = {}
    for term, port in zip(terms, e.inputs(), strict=True):
        for axis, letter in enumerate(term):
            e.role(port.axis(axis), "produces" if letter in right else "consumes")
            if letter in first:
                e.same(*first[letter], port, axis)
            elif letter in right:
                e.same(port, axis, output, right.index(letter))
            first.setdefault(letter, (port, axis))


def _batch_and_space(e: Emitter, source: Port, weight: Port, output: Port) -> None:
    e.same(source, 0, output, 0)
    for port in (source, weight, output):
        for axis in range(2, port.rank):
            e.fix(port.axis(axis), "is a spatial axis of a convolution")


def _bias(e: Emitter, output: Port) -> None:
    bias = e.optional(2)
    if bias is not None:
        e.same(bias, 0, output, 1)
        e.role(bias.axis(0), "produces")


def _length(port: Port, index: int) -> int:
    return port.static(index) or 1
