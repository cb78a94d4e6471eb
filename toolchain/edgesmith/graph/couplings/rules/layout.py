"""Operators that move positions without changing what stands there."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from edgesmith.graph.couplings.emitter import Emitter, Port
from edgesmith.graph.couplings.relations import Axis
from edgesmith.graph.couplings.sizes import Dim, constant_array, constant_integers, is_unknown, regroup


def transpose(e: Emitter) -> None:
    """Axes change places."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    order = e.node.attributes.get_ints("perm", tuple(reversed(range(source.rank))))
    for target, axis in enumerate(order):
        e.same(source, axis, output, target)


def squeeze(e: Emitter) -> None:
    """Axes of length one vanish; the others keep their order."""
    source = e.input(0)
    axes = constant_integers(e.node.inputs[1]) if e.optional(1) else _ones(source)
    output = e.output(rank=None if axes is None else source.rank - len(axes))
    _keep_order(e, source, output, axes)


def unsqueeze(e: Emitter) -> None:
    """Axes of length one appear; the others keep their order."""
    source = e.input(0)
    axes = constant_integers(e.node.inputs[1])
    output = e.output(rank=None if axes is None else source.rank + len(axes))
    _keep_order(e, output, source, axes, swap=True)


def _ones(port: Port) -> list[int] | None:
    static = all(isinstance(dim, int) for dim in port.dims)
    return [axis for axis, dim in enumerate(port.dims) if dim == 1] if static else None


def _keep_order(e: Emitter, longer: Port, shorter: Port, axes: list[int] | None, *, swap: bool = False) -> None:
    gone = {axis % longer.rank for axis in axes or ()}
    kept = [axis for axis in range(longer.rank) if axis not in gone]
    if axes is None or len(kept) != shorter.rank:
        e.fix_all("the axes it works on are not constant")
        return
    for target, axis in enumerate(kept):
        pair = (shorter, target, longer, axis) if swap else (longer, axis, shorter, target)
        e.same(*pair)
    if swap:
        for axis in gone:
            e.sizes.learn(longer.value, axis, 1)


def reshape(e: Emitter) -> None:
    """Neighbouring axes merge and split. A head is one place on the axis that a split makes."""
    source = e.input(0)
    target = e.sizes.elements(e.node.inputs[1])
    output = e.output(rank=None if target is None else len(target))
    _learn_target(e, source, output)
    _regroup(e, source, output)
    _check_computed_target(e, output)


def flatten(e: Emitter) -> None:
    """A Reshape to two axes."""
    source = e.input(0)
    output = e.output(rank=2)
    axis = e.node.attributes.get_int("axis", 1) % (source.rank + 1)
    for target, dims in enumerate((source.dims[:axis], source.dims[axis:])):
        static = [dim for dim in dims if isinstance(dim, int)]
        if len(static) == len(dims):
            e.sizes.learn(output.value, target, int(np.prod(static, dtype=np.int64)))
        elif len(dims) == 1:
            e.sizes.learn(output.value, target, dims[0])
    _regroup(e, source, e.output())


def _learn_target(e: Emitter, source: Port, output: Port) -> None:
    elements = e.sizes.elements(e.node.inputs[1])
    if elements is None or len(elements) != output.rank:
        return
    copies = not e.node.attributes.get_int("allowzero", 0)
    for axis, element in enumerate(elements):
        if element.dim == 0 and copies and axis < source.rank:
            e.sizes.learn(output.value, axis, source.dims[axis])
        elif element.dim != -1 and element.dim != 0:
            e.sizes.learn(output.value, axis, element.dim)
    rest = [axis for axis, dim in enumerate(output.dims) if is_unknown(dim)]
    if len(rest) == 1:
        quotient = _quotient(source.dims, [dim for axis, dim in enumerate(output.dims) if axis != rest[0]])
        if quotient is not None:
            e.sizes.learn(output.value, rest[0], quotient)


def _quotient(total: Sequence[Dim], others: Sequence[Dim]) -> Dim | None:
    """Return the length that, times the other lengths, gives the total; None when that is not certain."""
    above, below = Counter(total), Counter(others)
    above, below = above - below, below - above
    static = [
        int(np.prod([d for d in side.elements() if isinstance(d, int)], dtype=np.int64)) for side in (above, below)
    ]
    dynamic = [dim for dim in above.elements() if isinstance(dim, str)]
    if any(isinstance(dim, str) for dim in below) or not static[1] or len(dynamic) > 1:
        return None
    if dynamic:
        return dynamic[0] if static[0] == static[1] else None
    return static[0] // static[1]


def _regroup(e: Emitter, source: Port, output: Port) -> None:
    output = e.output()
    for left, right in regroup(source.dims, output.dims):
        axes = [source.axis(axis) for axis in left], [output.axis(axis) for axis in right]
        dims = [source.dims[axis] for axis in left], [output.dims[axis] for axis in right]
        if len(left) == len(right) == 1:
            e.same(source, left[0], output, right[0])
        elif all(isinstance(dim, int) for side in dims for dim in side):
            _static_group(e, *axes)
        elif not _periodic_group(e, axes, dims):
            for axis in (*axes[0], *axes[1]):
                e.fix(axis, "is regrouped with an axis of dynamic length")


def _static_group(e: Emitter, left: list[Axis], right: list[Axis]) -> None:
    if len(left) == 1 or len(right) == 1:
        whole, parts = (left[0], right) if len(left) == 1 else (right[0], left)
        e.product(whole, parts)
        return
    whole = e.helper(int(np.prod([e.relations.lengths[axis] for axis in left], dtype=np.int64)))
    e.product(whole, left)
    e.product(whole, right)


def _periodic_group(e: Emitter, axes: tuple[list[Axis], list[Axis]], dims: tuple[list[Dim], list[Dim]]) -> bool:
    """Relate [batch, heads] and [batch * heads]: the merged axis repeats its channels for each sample."""
    for whole, parts in ((0, 1), (1, 0)):
        leading, *rest = dims[parts]
        if len(dims[whole]) == 1 and isinstance(leading, str) and all(isinstance(dim, int) for dim in rest):
            e.product(axes[whole][0], axes[parts][1:])
            return True
    return False


def _check_computed_target(e: Emitter, output: Port) -> None:
    """Refuse where a smaller graph would need a shape that neither a constant nor -1 can express."""
    elements = e.sizes.elements(e.node.inputs[1])
    free = elements is not None and all(element.dim != -1 for element in elements)
    for axis, dim in enumerate(output.dims):
        element = None if elements is None or len(elements) != output.rank else elements[axis]
        known = element is not None and (element.dim in (-1, 0) or not element.computed)
        if isinstance(dim, str) and not known and not (free and output.axis(axis) in e.relations.lengths):
            e.fix(output.axis(axis), "has a length that is computed in a way that cannot be followed")
            for name, index in element.sources if element else ():
                e.fix(Axis(name, index), "enters the computation of a dynamic length")


def expand(e: Emitter) -> None:
    """Axes of length one are repeated; the others stay."""
    source = e.input(0)
    elements = e.sizes.elements(e.node.inputs[1])
    output = e.output(rank=None if elements is None else max(len(elements), source.rank))
    offset = output.rank - source.rank
    for axis in range(output.rank):
        dim = source.dims[axis - offset] if axis >= offset else 1
        target = elements[axis - output.rank].dim if elements and len(elements) >= output.rank - axis else None
        if dim != 1:
            e.sizes.learn(output.value, axis, dim)
        elif target is not None:
            e.sizes.learn(output.value, axis, target)
    output = e.output()
    for axis in range(source.rank):
        e.same(source, axis, output, axis + offset)


def constant_of_shape(e: Emitter) -> None:
    """A constant has whatever length its shape says."""
    elements = e.sizes.elements(e.node.inputs[0])
    output = e.output(rank=None if elements is None else len(elements))
    for axis, element in enumerate(elements or ()):
        e.sizes.learn(output.value, axis, element.dim)
    e.output()


def concat(e: Emitter) -> None:
    """Channels of several values stand behind each other."""
    inputs = e.inputs()
    output = e.output(rank=inputs[0].rank)
    axis = e.node.attributes["axis"].as_int() % output.rank
    for port in inputs:
        for other in set(range(output.rank)) - {axis}:
            e.same(port, other, output, other)
        for own in port.axes():
            e.role(own, "produces")
    lengths = [port.static(axis) for port in inputs]
    static = [length for length in lengths if length is not None]
    if len(static) < len(lengths):
        for port in (*inputs, output):
            e.fix(port.axis(axis), "is joined with an axis of dynamic length")
        return
    e.sizes.learn(output.value, axis, sum(static))
    output, start = e.output(), 0
    for port, length in zip(inputs, static, strict=True):
        e.some(port.axis(axis), np.arange(length), output.axis(axis), np.arange(start, start + length))
        start += length


def split(e: Emitter) -> None:
    """Channels are dealt out in contiguous parts."""
    source = e.input(0)
    outputs = [e.output(index, rank=source.rank) for index in range(len(e.node.outputs))]
    axis = e.node.attributes.get_int("axis", 0) % source.rank
    for port in outputs:
        for other in set(range(source.rank)) - {axis}:
            e.same(source, other, port, other)
    length = source.static(axis)
    sizes = constant_integers(e.node.inputs[1]) if e.optional(1) else _even_parts(length, len(outputs))
    if length is None or sizes is None or len(sizes) != len(outputs):
        for port in (source, *outputs):
            e.fix(port.axis(axis), "is split into parts of dynamic length")
        return
    start = 0
    for port, size in zip(outputs, sizes, strict=True):
        e.sizes.learn(port.value, axis, size)
        e.some(source.axis(axis), np.arange(start, start + size), port.axis(axis), np.arange(size))
        start += size


def _even_parts(length: int | None, count: int) -> list[int] | None:
    if length is None:
        return None
    size = -(-length // count)
    return [min(size, length - start) for start in range(0, size * count, size)]


def slice_(e: Emitter) -> None:
    """Some positions go on, the others end here."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    given = [constant_integers(value) if value else None for value in (*e.node.inputs[1:5], None, None)[:4]]
    starts, ends, axes, steps = given
    if starts is not None or ends is not None:
        axes = axes or list(range(len(starts or ends or ())))
    if axes is None or (e.optional(4) and steps is None):
        e.fix_all("the axes or steps it works on are not constant")
        return
    axes = [axis % source.rank for axis in axes]
    for axis in set(range(source.rank)) - set(axes):
        e.same(source, axis, output, axis)
    for place, axis in enumerate(axes):
        if starts is None or ends is None:
            for port in (source, output):
                e.fix(port.axis(axis), "is cut at a place that is computed at run time")
        else:
            _cut(e, (source, output), axis, slice(starts[place], ends[place], steps[place] if steps else 1))


def _cut(e: Emitter, ports: tuple[Port, Port], axis: int, cut: slice) -> None:
    source, output = ports
    length = source.static(axis)
    if length is None:
        whole = cut.start == 0 and cut.stop > 1 << 31 and cut.step == 1
        if whole:
            e.same(source, axis, output, axis)
        else:
            for port in ports:
                e.fix(port.axis(axis), "has a dynamic length and is cut")
        return
    positions = np.arange(length)[cut]
    e.sizes.learn(output.value, axis, len(positions))
    e.some(source.axis(axis), positions, e.output().axis(axis), np.arange(len(positions)))


def gather(e: Emitter) -> None:
    """A constant list of indices picks positions; indices from data could pick any."""
    source, indices = e.input(0), e.input(1)
    output = e.output(rank=source.rank + indices.rank - 1)
    axis = e.node.attributes.get_int("axis", 0) % source.rank
    for other in range(source.rank):
        if other != axis:
            e.same(source, other, output, other if other < axis else other + indices.rank - 1)
            e.role(source.axis(other), "produces")
    picked, length = constant_integers(e.node.inputs[1]), source.static(axis)
    if picked is None or length is None or indices.rank > 1:
        e.fix(source.axis(axis), "is indexed by data")
        for place in range(indices.rank):
            e.same(indices, place, output, axis + place)
        return
    picked = [index % length for index in picked]
    if indices.rank == 0:
        e.fix(source.axis(axis), "has a position that is picked by its number", picked)
    else:
        e.sizes.learn(output.value, axis, len(picked))
        e.some(source.axis(axis), np.asarray(picked), e.output().axis(axis), np.arange(len(picked)))


def tile(e: Emitter) -> None:
    """The whole axis is repeated."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    repeats = constant_integers(e.node.inputs[1])
    if repeats is None:
        e.fix_all("its repeats are not constant")
        return
    for axis, count in enumerate(repeats):
        length = source.static(axis)
        if count == 1:
            e.same(source, axis, output, axis)
        elif length is None:
            for port in (source, output):
                e.fix(port.axis(axis), "has a dynamic length and is repeated")
        elif length > 1:
            e.sizes.learn(output.value, axis, length * count)
            places = np.arange(length * count)
            e.some(source.axis(axis), places % length, e.output().axis(axis), places)
        else:
            e.fix(output.axis(axis), "is made by repeating one position")


def pad(e: Emitter) -> None:
    """Constant positions are added at the ends of some axes."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    pads = constant_integers(e.node.inputs[1])
    axes = constant_integers(e.node.inputs[3]) if e.optional(3) else list(range(source.rank))
    if pads is None or axes is None:
        e.fix_all("its pads are not constant")
        return
    around = {axis % source.rank: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    for axis in range(source.rank):
        before, after = around.get(axis, (0, 0))
        length = source.static(axis)
        if before == after == 0:
            e.same(source, axis, output, axis)
        elif (
            length is None or before < 0 or after < 0 or e.node.attributes.get_string("mode", "constant") != "constant"
        ):
            for port in (source, output):
                e.fix(port.axis(axis), "is padded")
        else:
            e.sizes.learn(output.value, axis, before + length + after)
            e.some(source.axis(axis), np.arange(length), e.output().axis(axis), np.arange(before, before + length))


def depth_to_space(e: Emitter) -> None:
    """Channels are [blocks, channels] (DCR) or [channels, blocks] (CRD)."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    channels_last = e.node.attributes.get_string("mode", "DCR") == "DCR"
    _blocks(e, (source, output), (source, output), channels_last=channels_last)


def space_to_depth(e: Emitter) -> None:
    """The result's channels are [blocks, channels]."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    _blocks(e, (source, output), (output, source), channels_last=True)


def _blocks(e: Emitter, ports: tuple[Port, Port], deep_and_flat: tuple[Port, Port], *, channels_last: bool) -> None:
    deep, flat = deep_and_flat
    e.same(ports[0], 0, ports[1], 0)
    block = e.helper(e.node.attributes["blocksize"].as_int() ** 2)
    e.fix(block, "is folded into space")
    parts = [block, flat.axis(1)]
    e.product(deep.axis(1), parts if channels_last else parts[::-1])
    for port in ports:
        for axis in range(2, port.rank):
            e.fix(port.axis(axis), "is folded into channels")


def resize(e: Emitter) -> None:
    """Axes that keep their length keep their channels."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    scales = constant_array(e.node.inputs[2]) if e.optional(2) else None
    axes = e.node.attributes.get_ints("axes", tuple(range(source.rank)))
    kept = {axis % source.rank for place, axis in enumerate(axes) if scales is not None and scales[place] == 1}
    kept |= set(range(source.rank)) - {axis % source.rank for axis in axes}
    kept |= {axis for axis in range(source.rank) if source.dims[axis] == output.dims[axis]}
    for axis in range(source.rank):
        if axis in kept:
            e.same(source, axis, output, axis)
        else:
            for port in (source, output):
                e.fix(port.axis(axis), "is resized")
