"""The fused Attention operator of opset 23."""

from edgesmith.graph.couplings.emitter import Emitter, Port
from edgesmith.graph.couplings.relations import Axis

_MASK = 3


def attention(e: Emitter) -> None:
    """Queries, keys and values share heads; queries and keys share their width, values and the result theirs."""
    past = any(e.node.inputs[index] for index in range(_MASK + 1, len(e.node.inputs)))
    if past or any(value.name for value in e.node.outputs[1:]):
        e.fix_all("attention with a cache or inner results has no channel rule")
        return
    ports = query, key, value, output = e.input(0), e.input(1), e.input(2), e.output()
    for port in (query, key, value):
        e.same(port, 0, output, 0)
    e.same(query, -2, output, -2)
    e.same(key, -2, value, -2)
    if query.rank == 4:
        heads, key_heads = query.dims[1], key.dims[1]
    else:
        heads, key_heads = (e.node.attributes.get_int(f"{kind}_num_heads", 0) for kind in ("q", "kv"))
    if not isinstance(heads, int) or not isinstance(key_heads, int):
        e.fix_all("attention with a dynamic number of heads has no channel rule")
        return
    query_head, key_head = e.helper(heads), e.helper(key_heads)
    e.product(query_head, [key_head, e.helper(heads // key_heads)])
    widths = [
        _width(e, port, head, count)
        for port, head, count in zip(
            ports, (query_head, key_head, key_head, query_head), (heads, key_heads, key_heads, heads), strict=True
        )
    ]
    for first, second in ((0, 1), (2, 3)):
        e.product(widths[first], [widths[second]])
    if "scale" not in e.node.attributes:
        e.inexact(widths[0], "sets the scale of attention")
    _mask(e, query_head)


def _width(e: Emitter, port: Port, head: Axis, count: int) -> Axis:
    """Relate a port's heads and return the axis of the width of a head."""
    if port.rank == 4:
        e.product(port.axis(1), [head])
        return port.axis(3)
    width = e.helper((port.static(2) or count) // count)
    e.product(port.axis(2), [head, width])
    return width


def _mask(e: Emitter, head: Axis) -> None:
    mask = e.optional(_MASK)
    if mask is not None and mask.rank > 2 and mask.dims[-3] != 1:
        e.product(mask.axis(-3), [head])
