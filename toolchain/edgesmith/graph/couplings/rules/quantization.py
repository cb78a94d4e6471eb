"""QuantizeLinear and DequantizeLinear: per-channel scales and zero points go with their channel."""

from edgesmith.graph.couplings.emitter import Emitter, Port


def scaling(e: Emitter) -> None:
    """Per tensor, per axis, or per block of an axis."""
    source = e.input(0)
    output = e.output(rank=source.rank)
    for axis in range(source.rank):
        e.same(source, axis, output, axis)
    axis = e.node.attributes.get_int("axis", 1)
    for parameter in e.inputs()[1:]:
        if parameter.rank == 1 and parameter.dims[0] != 1:
            e.role(parameter.axis(0), "passes")
            e.same(parameter, 0, output, axis)
        elif parameter.rank > 1:
            _blockwise(e, parameter, output, axis % output.rank)


def _blockwise(e: Emitter, parameter: Port, output: Port, axis: int) -> None:
    """Relate scales per block: along the blocked axis only whole blocks can go."""
    for other in range(output.rank):
        e.role(parameter.axis(other), "passes")
        if other != axis:
            e.same(parameter, other, output, other)
    block, length = e.node.attributes.get_int("block_size", 0), output.static(axis)
    if not block or length is None or length % block:
        for port in (parameter, output):
            e.fix(port.axis(axis), "has blocks of one scale that do not fill it")
        return
    inner = e.helper(block)
    e.fix(inner, "is a place within a block of one scale")
    e.product(output.axis(axis), [parameter.axis(axis), inner])
