"""Proportional attention: a token that stands for several counts as several.

Bolya et al. 2023 (ToMe), arXiv 2210.09461, section 3, "tracking token size": softmax(q k^T / sqrt(d) + log s), where s
are the sizes of the keys.
"""

import onnx_ir as ir

from edgesmith.graph.edit import GraphEditor
from edgesmith_tokens.tokens.writer import Writer


def logarithms(writer: Writer, sizes: ir.Value) -> ir.Value:
    """Return logarithms of sizes as [batch, 1, 1, tokens] in float32, to add to scores [batch, heads, queries, keys].

    Args:
        writer: Where to compute them.
        sizes: [batch, tokens, 1] in float32.
    """
    logarithm = writer.add("Log", (sizes,), shape=sizes.shape)
    shape = None if sizes.shape is None else [sizes.shape[0], 1, 1, sizes.shape[1]]
    return writer.add("Reshape", (logarithm, writer.integers(0, 1, 1, -1)), shape=shape)


def weigh_keys(editor: GraphEditor, softmax: ir.Node, logarithm: ir.Value) -> None:
    """Add log sizes to what enters a softmax over keys; in float32, whatever the scores are in.

    Args:
        editor: Edits the graph.
        softmax: Its input is [batch, heads, queries, keys].
        logarithm: From `logarithms`.
    """
    scores, result = softmax.inputs[0], softmax.outputs[0]
    if scores is None:
        return
    full = ir.DataType.FLOAT
    wide: ir.Value = scores
    if scores.dtype not in (None, full):
        wide = editor.insert_before(softmax, "Cast", (scores,), {"to": int(full)}).outputs[0]
        _describe(wide, scores.shape, full)
    weighed = editor.insert_before(softmax, "Add", (wide, logarithm), name=f"{softmax.name}.sizes").outputs[0]
    _describe(weighed, scores.shape, full)
    softmax.replace_input_with(0, weighed)
    if wide is not scores and scores.dtype is not None:
        narrow = editor.insert_after(result, "Cast", (result,), {"to": int(scores.dtype)})
        _describe(narrow.outputs[0], result.shape, scores.dtype)
        result.type = ir.TensorType(full)
        editor.replace_uses(result, narrow.outputs[0], keep=(narrow,))


def _describe(value: ir.Value, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    value.shape, value.type = shape, ir.TensorType(dtype)
