"""Writes operators that ONNX Runtime's optimizer fused in those of ONNX, so that every method and target knows them.

An optimized file holds a whole attention layer, or a sum with the normalization behind it, in one operator of
`com.microsoft`. No method finds heads or blocks in there, and no other runtime reads it. ONNX Runtime fuses them again
when it loads the result.

What each operator means is written in ONNX Runtime's ContribOperators.md. Attention with a cache, over causal positions
or on packed inputs stays: its readers are decoders, and structure and caches are read from the fused form.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgesmith.graph.edit import Attribute, GraphEditor
from edgesmith.serialization import RUNTIME_DOMAINS

_DOMAIN = "com.microsoft"
OPSET = 20
"""First opset that has all operators written here."""

_ACTIVATIONS: Mapping[str, Sequence[str]] = {
    "Clip": ("min", "max"),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Tanh": (),
}
"""Activations that are fused into products, with what their numbers are called."""

_COMPARISONS = frozenset(("And", "Greater", "GreaterOrEqual", "Less"))

Written = Sequence[ir.Value | None]
"""What stands for the outputs of a node; None for one that nobody may read."""


class _Expression:
    """Writes operators in front of the node that they stand for."""

    def __init__(self, editor: GraphEditor, node: ir.Node) -> None:
        self.editor, self.node = editor, node
        self.inputs: list[ir.Value | None] = [*node.inputs, *[None] * 12]

    def add(self, op_type: str, *inputs: ir.Value | None, **attributes: Attribute) -> ir.Value:
        """Add a node and return its output."""
        # ONNX Runtime crashes where a norm names an offset that is empty.
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        name = f"{self.node.name}.{op_type}"
        node = self.editor.insert_before(self.node, op_type, inputs, attributes, name=name)
        added = node.outputs[0]
        if op_type in _COMPARISONS:
            added.type = ir.TensorType(ir.DataType.BOOL)
        elif op_type == "Cast":
            added.type = ir.TensorType(ir.DataType(node.attributes["to"].as_int()))
        elif op_type == "Shape":
            added.type = ir.TensorType(ir.DataType.INT64)
        else:
            like = inputs[1 if op_type == "Where" else 0]
            added.type = None if like is None else like.type
        return added

    def split(self, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
        """Return the parts of a value along its last axis."""
        inputs, name = (value, self.integers(*sizes)), f"{self.node.name}.Split"
        node = self.editor.insert_before(self.node, "Split", inputs, {"axis": -1}, name=name, outputs=len(sizes))
        for part in node.outputs:
            part.type = value.type
        return node.outputs

    def positions(self, rows: ir.Value) -> ir.Value:
        """Return the numbers from 0 of what lies along the second axis of a value."""
        zero, one = (self.editor.add_initializer(f"{self.node.name}.{each}", np.asarray(each)) for each in (0, 1))
        return self.add("Range", zero, self.add("Gather", self.add("Shape", rows), one), one)

    def integers(self, *numbers: int) -> ir.Value:
        """Return a constant list of integers."""
        return self.editor.add_initializer(f"{self.node.name}.integers", np.asarray(numbers, np.int64))

    def number(self, number: float, like: ir.Value) -> ir.Value:
        """Return a constant number in the type of a value."""
        dtype = like.dtype or ir.DataType.FLOAT
        return self.editor.add_initializer(f"{self.node.name}.number", np.asarray(number, dtype.numpy()))

    def attribute(self, name: str, default: float) -> float:
        """Return a number among the attributes of the node."""
        found = self.node.attributes.get(name)
        return (
            default
            if found is None
            else float(found.as_int() if found.type == ir.AttributeType.INT else found.as_float())
        )


def unfuse(model: ir.Model, *, kind: str | None = None) -> None:
    """Write fused operators of ONNX Runtime in those of ONNX, in place, where their shapes say how.

    Args:
        model: The graph; left as it is below opset 20.
        kind: The operator to write, out of `KINDS`; all of them by default.
    """
    if model.opset_imports.get("", 0) < OPSET:
        return
    editor = GraphEditor(model.graph)
    for node in tuple(_fused(model, kind)):
        results = _FORMS[node.op_type](_Expression(editor, node))
        if results is not None:
            _take_over(editor, node, results)


def has_fused(model: ir.Model, *, kind: str | None = None) -> bool:
    """Return whether a graph has an operator that `unfuse` may write."""
    return any(_fused(model, kind))


def what_stays(model: ir.Model) -> str:
    """Return which operators of ONNX Runtime a graph has and what to do about it, or an empty string."""
    found = Counter(node.op_type for node in model.graph.all_nodes() if node.domain in RUNTIME_DOMAINS or _is_own(node))
    if not found:
        return ""
    listed = ", ".join(f"{count} {op_type}" for op_type, count in sorted(found.items()))
    return (
        f"Operators of ONNX Runtime stay in the graph: {listed}. Most targets but `onnx-cpu` take none, and methods "
        "look into few; where ONNX Runtime's optimizer wrote them, start from the file before it."
    )


def _fused(model: ir.Model, kind: str | None) -> Iterator[ir.Node]:
    for node in model.graph.all_nodes():
        if node.op_type in _FORMS and kind in (None, node.op_type) and (node.domain == _DOMAIN or _is_own(node)):
            yield node


def _is_own(node: ir.Node) -> bool:
    """Whether it is the one operator that ONNX Runtime's optimizer writes into ONNX's domain, which never had it."""
    return node.domain == "" and node.op_type == "SimplifiedLayerNormalization"


def _take_over(editor: GraphEditor, node: ir.Node, results: Written) -> None:
    """Let values stand for the outputs of a node, with their names, and remove it."""
    taken = [(old, new, old.name) for old, new in zip(node.outputs, results, strict=False) if new is not None]
    for old, new, _ in taken:
        new.shape, new.type = old.shape, old.type or new.type
        editor.replace_uses(old, new)
    editor.remove_unused((node,))
    for _, new, name in taken:
        if not new.is_graph_output():
            new.name = name


def _attention(new: _Expression) -> Written | None:
    """Attention: one product makes queries, keys and values of its input."""
    source, weight, bias, mask, past, added = new.inputs[:6]
    shape = None if weight is None else _sizes(weight)
    heads, width = int(new.attribute("num_heads", 0)), 0 if shape is None else shape[1] // 3
    given = new.node.attributes.get("qkv_hidden_sizes")
    sizes = [width] * 3 if given is None else list(given.as_ints())
    if source is None or shape is None or bias is None or past is not None or new.attribute("do_rotary", 0):
        return None
    if not _is_plain(new) or len(sizes) != 3 or sizes[0] != sizes[1] or not heads or sizes[0] % heads:
        return None
    readable, seen = _seen(new, mask, source)
    if not readable:
        return None
    whole = new.add("Add", new.add("MatMul", source, weight), bias)
    return (_attended(new, new.split(whole, sizes), heads, sizes[0] // heads, seen, added),)


def _multi_head_attention(new: _Expression) -> Written | None:
    """MultiHeadAttention: lists of queries, keys and values, [batch, sequence, heads x size], with a bias for all."""
    bias, mask, added = new.inputs[3:6]
    heads, parts = int(new.attribute("num_heads", 0)), [value for value in new.inputs[:3] if value is not None]
    shapes = [_sizes(value) for value in parts]
    widths = [shape[2] for shape in shapes if shape is not None and len(shape) == 3]
    if len(widths) != 3 or min(widths) <= 0 or not heads or widths[0] != widths[1] or any(new.inputs[6:]):
        return None
    if not _is_plain(new) or not (mask is None or len(_sizes(mask) or ()) == 2):
        return None
    _, seen = _seen(new, mask, parts[1])
    if bias is not None:
        parts = [new.add("Add", *pair) for pair in zip(parts, new.split(bias, widths), strict=True)]
    return (_attended(new, parts, heads, widths[0] // heads, seen, added),)


def _is_plain(new: _Expression) -> bool:
    """Whether attention sees all positions but those that a mask hides, and gives only its result."""
    further = any(output.uses() or output.is_graph_output() for output in new.node.outputs[1:])
    return not further and not new.attribute("unidirectional", 0)


def _seen(new: _Expression, mask: ir.Value | None, keys: ir.Value) -> tuple[bool, ir.Value | None]:
    """Return whether a mask is of a form that is known, and what it lets be seen, [batch, 1, 1 or queries, keys].

    A mask has a number above 0 for each key that is seen, [batch, keys] or [batch, queries, keys]. Or it is the
    number of keys that are seen, [batch], behind which may come the first one that is, [2 batch].
    """
    if mask is None:
        return True, None
    shape = _sizes(mask) or ()
    if len(shape) in (2, 3):
        seen = new.add("Greater", mask, new.editor.add_initializer("zero", _zero(mask)))
        return True, new.add("Unsqueeze", seen, new.integers(*((1, 2) if len(shape) == 2 else (1,))))
    parts = _lengths(new, mask, keys)
    if not parts:
        return False, None
    positions = new.positions(keys)
    bounds = [new.add("Cast", part, to=int(ir.DataType.INT64)) for part in parts]
    bounds = [new.add("Unsqueeze", bound, new.integers(1, 2, 3)) for bound in bounds]
    seen = new.add("Less", positions, bounds[0])
    if len(bounds) == 2:
        seen = new.add("And", seen, new.add("GreaterOrEqual", positions, bounds[1]))
    return True, seen


def _lengths(new: _Expression, mask: ir.Value, keys: ir.Value) -> Sequence[ir.Value]:
    """Return the ends of what is seen of each list, and the starts where they are given; nothing if it is neither."""
    if mask.shape is None or len(mask.shape) != 1:
        return ()
    given, batch, producer = mask.shape[0], None if keys.shape is None else keys.shape[0], mask.producer()
    named = isinstance(given, int) or given.value is not None
    # Sums over the rows of a mask are one for each list, whether or not shapes were inferred so far.
    if (named and given == batch) or (producer is not None and producer.op_type == "ReduceSum"):
        return (mask,)
    if isinstance(batch, int) and given == 2 * batch:
        return new.split(mask, (batch, batch))
    return ()


def _attended(
    new: _Expression,
    parts: Sequence[ir.Value],
    heads: int,
    size: int,
    seen: ir.Value | None,
    added: ir.Value | None,
) -> ir.Value:
    """Return softmax(Q K^T / sqrt(size) + what is added) V of lists [batch, sequence, heads x size].

    The scale is on the queries: in float16 the product alone may pass what that type holds.
    """
    apart, together = new.integers(0, 0, heads, -1), new.integers(0, 0, -1)
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    split = [new.add("Reshape", part, apart) for part in parts]
    query, key, value = (new.add("Transpose", part, perm=order) for part, order in zip(split, orders, strict=True))
    scale = new.attribute("scale", 0.0) or size**-0.5
    scores = new.add("MatMul", new.add("Mul", query, new.number(scale, query)), key)
    if seen is not None:
        lowest = float((query.dtype or ir.DataType.FLOAT).min)
        hidden = new.number(max(new.attribute("mask_filter_value", -10000.0), lowest), query)
        scores = new.add("Add", scores, new.add("Where", seen, new.number(0.0, query), hidden))
    if added is not None:
        scores = new.add("Add", scores, added)
    context = new.add("MatMul", new.add("Softmax", scores, axis=-1), value)
    return new.add("Reshape", new.add("Transpose", context, perm=[0, 2, 1, 3]), together)


def _zero(like: ir.Value) -> np.ndarray:
    return np.zeros((), (like.dtype or ir.DataType.INT32).numpy())


def _skip_layer_normalization(new: _Expression) -> Written | None:
    """SkipLayerNormalization: the layer norm of a sum, and the sum itself as output 3."""
    source, skip, scale, offset, bias = new.inputs[:5]
    total = _sum(new, (source, skip, bias))
    if total is None:
        return None
    epsilon = new.attribute("epsilon", 1e-12)
    return new.add("LayerNormalization", total, scale, offset, axis=-1, epsilon=epsilon), None, None, total


def _skip_simplified(new: _Expression) -> Written | None:
    """SkipSimplifiedLayerNormalization: the same with the root of the mean square, without offset."""
    source, skip, scale, bias = new.inputs[:4]
    known = source is not None and source.dtype is not None
    total = _sum(new, (source, skip, bias)) if known else None
    return None if total is None else (_over_root_of_mean_square(new, total, scale), None, None, total)


def _simplified(new: _Expression) -> Written | None:
    """SimplifiedLayerNormalization over the last axis: a value by the root of its mean square."""
    source, scale = new.inputs[:2]
    read = any(output.uses() or output.is_graph_output() for output in new.node.outputs[1:])
    if source is None or source.dtype is None or source.shape is None or read:
        return None
    if new.attribute("axis", -1) not in (-1, len(source.shape) - 1):
        return None
    return (_over_root_of_mean_square(new, source, scale),)


def _over_root_of_mean_square(new: _Expression, source: ir.Value, scale: ir.Value | None) -> ir.Value:
    # Squares of large activations pass what float16 holds; the operator takes them in float32, too.
    short = source.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    wide = new.add("Cast", source, to=int(ir.DataType.FLOAT)) if short else source
    # With Pow ONNX Runtime knows it again, and fuses it when it loads the graph.
    square = new.add("ReduceMean", new.add("Pow", wide, new.number(2.0, wide)), new.integers(-1), keepdims=1)
    root = new.add("Sqrt", new.add("Add", square, new.number(new.attribute("epsilon", 1e-12), wide)))
    result = new.add("Div", wide, root)
    if scale is not None and scale.dtype not in (None, result.dtype):
        result = new.add("Cast", result, to=int(scale.dtype))
    return new.add("Mul", result, scale)


def _embedded(new: _Expression) -> Written | None:
    """EmbedLayerNormalization: the layer norm of rows of two or three tables, as BERT begins, and lengths of a mask."""
    tokens, segments, words, places, kinds, scale, offset, mask, positions = new.inputs[:9]
    lengths = new.node.outputs[1] if len(new.node.outputs) > 1 else None
    asked = lengths is not None and (bool(lengths.uses()) or lengths.is_graph_output())
    if tokens is None or (mask is None and asked):
        return None
    total = new.add("Gather", words, tokens)
    total = new.add("Add", total, new.add("Gather", places, positions or new.positions(tokens)))
    if segments is not None:
        total = new.add("Add", total, new.add("Gather", kinds, segments))
    norm = new.add("LayerNormalization", total, scale, offset, axis=-1, epsilon=new.attribute("epsilon", 1e-12))
    return norm, new.add("ReduceSum", mask, new.integers(1), keepdims=0) if asked else None, total


def _sum(new: _Expression, parts: Sequence[ir.Value | None]) -> ir.Value | None:
    """Return the sum of an input, what is added to it and a bias; None where someone reads statistics of its norm."""
    if any(output.uses() or output.is_graph_output() for output in new.node.outputs[1:3]):
        return None
    source, skip, bias = parts
    if bias is not None:
        # The bias is that of the product beside it, so it goes there: then the stream is a sum of two again.
        if _is_product(skip) and not _is_product(source):
            source, skip = skip, source
        source = new.add("Add", source, bias)
    return new.add("Add", source, skip)


def _is_product(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and producer.op_type in ("MatMul", "FusedMatMul")


def _fused_matmul(new: _Expression) -> Written | None:
    """FusedMatMul: alpha A B, with the last two axes of each turned where that is asked for."""
    if new.attribute("transBatchA", 0) or new.attribute("transBatchB", 0):
        return None
    operands = []
    for value, name in zip(new.inputs[:2], ("transA", "transB"), strict=True):
        rank = 0 if value is None or value.shape is None else len(value.shape)
        if not new.attribute(name, 0):
            operands.append(value)
        elif rank < 2:
            return None
        else:
            operands.append(new.add("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2]))
    product, alpha = new.add("MatMul", *operands), new.attribute("alpha", 1.0)
    return (product if alpha == 1 else new.add("Mul", product, new.number(alpha, product)),)


def _gelu(new: _Expression) -> Written | None:
    """Gelu, and BiasGelu: Gelu of a sum."""
    return (new.add("Gelu", _biased(new)),)


def _fast_gelu(new: _Expression) -> Written | None:
    """FastGelu: Gelu by a hyperbolic tangent, of a sum if there is a bias."""
    return (new.add("Gelu", _biased(new), approximate="tanh"),)


def _quick_gelu(new: _Expression) -> Written | None:
    """QuickGelu: x sigmoid(alpha x)."""
    source = new.inputs[0]
    if source is None:
        return None
    scaled = new.add("Mul", source, new.number(new.attribute("alpha", 1.702), source))
    return (new.add("Mul", source, new.add("Sigmoid", scaled)),)


def _biased(new: _Expression) -> ir.Value | None:
    source, bias = new.inputs[:2]
    return source if bias is None else new.add("Add", source, bias)


def _fused_convolution(new: _Expression) -> Written | None:
    """FusedConv: an activation of a convolution, to which something may be added."""
    params = new.node.attributes.get("activation_params")
    numbers = () if params is None else params.as_floats()
    return _activated(new, "Conv", new.node.inputs[:3], new.inputs[3], numbers)


def _fused_gemm(new: _Expression) -> Written | None:
    """FusedGemm: an activation of a Gemm."""
    names = [f"activation_{name}" for name in ("alpha", "beta", "gamma")]
    numbers = [new.attribute(name, 0.0) for name in names if name in new.node.attributes]
    return _activated(new, "Gemm", new.node.inputs, None, numbers)


def _activated(
    new: _Expression, op_type: str, inputs: Written, added: ir.Value | None, numbers: Sequence[float]
) -> Written | None:
    """Return the activation of a product, whose node has the attributes of both."""
    own = {name: each for name, each in new.node.attributes.items() if not name.startswith("activation")}
    kind = new.node.attributes["activation"].as_string() if "activation" in new.node.attributes else ""
    if kind not in _ACTIVATIONS:
        return None
    result = new.add(op_type, *inputs, **{name: each.value for name, each in own.items()})
    if added is not None:
        result = new.add("Add", result, added)
    if kind == "Clip":
        return (new.add("Clip", result, *(new.number(number, result) for number in numbers)),)
    return (new.add(kind, result, **dict(zip(_ACTIVATIONS[kind], numbers, strict=False))),)


def _sizes(value: ir.Value) -> tuple[int, ...] | None:
    """Return the shape of a value, with 0 for a size that is open."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)


_FORMS: Mapping[str, Callable[[_Expression], Written | None]] = {
    "Attention": _attention,
    "BiasGelu": _gelu,
    "EmbedLayerNormalization": _embedded,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_convolution,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _gelu,
    "MultiHeadAttention": _multi_head_attention,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _simplified,
    "SkipLayerNormalization": _skip_layer_normalization,
    "SkipSimplifiedLayerNormalization": _skip_simplified,
}
KINDS = tuple(_FORMS)
"""Operators that may be written, by name."""
