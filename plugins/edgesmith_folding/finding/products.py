"""Which products compute x @ weight + bias and nothing else."""

import onnx_ir as ir


def is_plain_product(node: ir.Node) -> bool:
    """Whether a node is a MatMul, or a Gemm that neither scales nor turns its input. Exporters write defaults out."""
    if node.op_type != "Gemm":
        return node.op_type == "MatMul"
    scales = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    return scales == (1.0, 1.0) and not node.attributes.get_int("transA", 0)
