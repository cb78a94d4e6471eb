"""Operators that take a statistic over an axis: normalisations, Softmax, reductions, pooling."""

from edgesmith.graph.couplings.emitter import Emitter, Port
from edgesmith.graph.couplings.rules.elementwise import align
from edgesmith.graph.couplings.sizes import constant_integers

POOLS = ("AveragePool", "LpPool", "MaxPool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")
SOFTMAXES = ("Hardmax", "LogSoftmax", "Softmax")
SUMS = ("ReduceL1", "ReduceL2", "ReduceSum", "ReduceSumSquare")
"""Reductions that a zero channel does not change."""
OTHER_REDUCTIONS = ("ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd")


def batch_normalization(e: Emitter) -> None:
    """Scale, bias, mean and variance belong to one channel each."""
    if e.node.attributes.get_int("training_mode", 0) or sum(bool(value.name) for value in e.node.outputs) > 1:
        e.fix_all("a normalisation in training mode has no channel rule")
        return
    _, output = _pass_through(e)
    for parameter in e.inputs()[1:]:
        e.same(parameter, 0, output, 1)


def instance_normalization(e: Emitter) -> None:
    """Each channel is normalised over space on its own."""
    _, output = _pass_through(e)
    for parameter in e.inputs()[1:]:
        e.same(parameter, 0, output, 1)


def group_normalization(e: Emitter) -> None:
    """Whole groups can go; a part of each group takes its share of the statistics with it."""
    source, output = _pass_through(e)
    groups = e.node.attributes["num_groups"].as_int()
    group, inner = e.helper(groups), e.helper((source.static(1) or 1) // groups)
    e.product(source.axis(1), [group, inner])
    e.inexact(inner, "a group is normalised over its channels")
    for parameter in e.inputs()[1:]:
        if parameter.dims[0] == source.dims[1]:
            e.same(parameter, 0, output, 1)
        else:
            e.fix(source.axis(1), "has a scale for each group, a form that later opsets gave up")


def layer_normalization(e: Emitter) -> None:
    """LayerNormalization, RMSNormalization and kin: the normalised axes hang together through their statistics."""
    source, output = _pass_through(e)
    first = e.node.attributes.get_int("axis", -1) % source.rank
    for parameter in e.inputs()[1:]:
        align(e, [parameter], output, parameter.rank)
    for axis in range(first, source.rank):
        for port in (source, output):
            e.inexact(port.axis(axis), "is normalised: its mean or variance counts all channels")


def mean_variance_normalization(e: Emitter) -> None:
    """As LayerNormalization, with axes given one by one."""
    source, _ = _pass_through(e)
    for axis in e.node.attributes.get_ints("axes", (0, 2, 3)):
        e.inexact(source.axis(axis), "is normalised: its mean and variance count all channels")


def norm_division(e: Emitter) -> None:
    """LpNormalization: a zero channel does not change a norm."""
    _pass_through(e)


def softmax(e: Emitter) -> None:
    """Shares of one axis sum to one, so each channel changes the others."""
    source, _ = _pass_through(e)
    axis = e.node.attributes.get_int("axis", -1)
    e.inexact(source.axis(axis), "is turned into shares that sum to one")


def running_sum(e: Emitter) -> None:
    """CumSum: each position holds all before it."""
    source, _ = _pass_through(e)
    axes = constant_integers(e.node.inputs[1])
    for axis in range(source.rank) if axes is None else axes:
        e.inexact(source.axis(axis), "is summed up position by position")


def reduction(e: Emitter) -> None:
    """Reduced axes end here."""
    source = e.input(0)
    axes = _reduced(e, source)
    if axes is None:
        e.fix_all("the axes it reduces are not constant")
        return
    keep = e.node.attributes.get_int("keepdims", 1) == 1
    output = e.output(rank=source.rank if keep else source.rank - len(axes))
    target = 0
    for axis in range(source.rank):
        if axis not in axes:
            e.same(source, axis, output, target)
        elif e.node.op_type not in SUMS:
            e.inexact(source.axis(axis), "is reduced by something else than a sum")
        if keep and axis in axes:
            e.sizes.learn(output.value, target, 1)
        target += 1 if keep or axis not in axes else 0


def _reduced(e: Emitter, source: Port) -> set[int] | None:
    attribute = e.node.attributes.get("axes")
    axes = list(attribute.as_ints()) if attribute else []
    if e.optional(1):
        given = constant_integers(e.node.inputs[1])
        if given is None:
            return None
        axes = given
    if not axes and not e.node.attributes.get_int("noop_with_empty_axes", 0):
        axes = list(range(source.rank))
    return {axis % source.rank for axis in axes}


def selection(e: Emitter) -> None:
    """ArgMax, ArgMin, TopK: the result names positions of one axis."""
    source = e.input(0)
    axis = e.node.attributes.get_int("axis", -1 if e.node.op_type == "TopK" else 0) % source.rank
    keep = e.node.op_type == "TopK" or e.node.attributes.get_int("keepdims", 1) == 1
    e.fix(source.axis(axis), "has positions that are named by number in the result")
    rank = source.rank if keep else source.rank - 1
    for output in (e.output(index, rank=rank) for index, value in enumerate(e.node.outputs) if value.name):
        for other in set(range(source.rank)) - {axis}:
            e.same(source, other, output, other if keep or other < axis else other - 1)


def pooling(e: Emitter) -> None:
    """Each channel is pooled on its own."""
    source = e.input(0)
    rank = source.rank
    for output in (e.output(index, rank=rank) for index, value in enumerate(e.node.outputs) if value.name):
        e.same(source, 0, output, 0)
        e.same(source, 1, output, 1)
        for axis in range(2, source.rank):
            if e.node.op_type.startswith("Global"):
                e.sizes.learn(output.value, axis, 1)
        for port in (source, output):
            for axis in range(2, port.rank):
                e.fix(port.axis(axis), "is a spatial axis of a pooling")
    if len(e.node.outputs) > 1 and e.node.outputs[1].name:
        e.fix(source.axis(1), "has positions that are named by number in the result")


def local_response(e: Emitter) -> None:
    """LRN: neighbours on the channel axis are summed."""
    source, _ = _pass_through(e)
    e.inexact(source.axis(1), "is normalised over neighbouring channels")


def _pass_through(e: Emitter) -> tuple[Port, Port]:
    source = e.input(0)
    output = e.output(rank=source.rank)
    for axis in range(source.rank):
        e.same(source, axis, output, axis)
    return source, output
