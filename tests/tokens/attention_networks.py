"""Vision transformers whose attention is one operator, as ONNX defines it."""

from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model


def fused(model: Model) -> Model:
    """Return a copy with one operator for each attention: lists of tokens go in, heads side by side."""
    copy = model.clone()
    copy.graph.opset_imports[""] = 23
    values = {value.name: value for node in copy.graph for value in node.outputs}
    editor = GraphEditor(copy.graph)
    for attention in find_structure(copy.ir).attentions:
        parts = [values[each.linear.output] for each in (attention.query, attention.key, attention.value)]
        joined = values[attention.output.linear.input]
        heads = {"q_num_heads": attention.heads, "kv_num_heads": attention.kv_heads}
        new = editor.insert_before(joined.producer(), "Attention", parts, heads, name=f"{attention.score}_fused")
        editor.take_over(joined.producer(), new.outputs[0])
    return copy
