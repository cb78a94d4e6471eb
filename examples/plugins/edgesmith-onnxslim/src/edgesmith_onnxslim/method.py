"""The adapter: hands the graph over in onnxslim's form, and takes the result back. The host proves that it is equal."""

import onnx_ir as ir

from edgesmith import Context, Method, Model, Verdict
from edgesmith_onnxslim.options import Options

_LARGEST_BYTES = 3 << 29
"""A graph is handed over in one message, and protobuf ends at 2 GiB."""


class SlimGraph(Method[Options]):
    """Cleans up with onnxslim."""

    def check(self, model: Model, context: Context[Options]) -> Verdict:
        """Return whether onnxslim can take the graph. What it would find is known when it has looked."""
        weights = sum(_stored_bytes(value) for value in model.graph.initializers.values())
        if weights > _LARGEST_BYTES:
            return Verdict.refuse(
                f"its weights take {weights >> 20} MiB, and onnxslim is handed at most {_LARGEST_BYTES >> 20}: "
                "leave out this step, which gains least on such models"
            )
        if any(value.is_graph_input() for value in model.graph.initializers.values()):
            return Verdict.refuse("weights are listed among its inputs, which onnxslim would take off the list")
        if any(node.domain not in ("", "ai.onnx") and _quantizes(node) for node in model.graph.all_nodes()):
            return Verdict.refuse("it is quantized with operators that onnxslim does not know: put this step before")
        return Verdict.ok()

    def apply(self, model: Model, context: Context[Options]) -> Model:
        """Return what onnxslim makes of the graph."""
        import onnxslim

        options = context.options
        skipped = [
            name
            for name, wanted in (
                ("constant_folding", options.fold_constants),
                ("graph_fusion", options.fuse),
                ("subexpression_elimination", options.merge_equal),
                ("weight_tying", options.merge_equal),
            )
            if not wanted
        ]
        # onnxslim edits what it is given: it gets a message of its own, and the model stays as it is.
        slimmed = onnxslim.slim(
            ir.to_proto(model.ir),
            skip_optimizations=skipped,
            size_threshold=options.largest_folded_kib << 10,
            no_shape_infer=True,
        )
        result = model.with_ir(ir.from_proto(slimmed))
        before, after = (sum(1 for _ in one.graph.all_nodes()) for one in (model, result))
        context.notes.remark(f"{before} nodes became {after}.")
        return result


def _stored_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _quantizes(node: ir.Node) -> bool:
    return "Quant" in node.op_type or node.op_type in ("MatMulNBits", "QGemm")
