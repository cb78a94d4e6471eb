"""The target `onnx-cpu`: ONNX Runtime's CPU execution provider."""

from pathlib import Path

import onnx_ir.passes.common as common_passes

from edgesmith.errors import ModelError, TargetError
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.execution.reference import Optimization, ReferenceSession
from edgesmith.graph.opset import too_new
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect, TensorFormat, WeightFormat
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.serialization import write_onnx
from edgesmith_onnxruntime.float8_casts import write_float8_casts
from edgesmith_onnxruntime.lowering import lower
from edgesmith_onnxruntime.separate_biases import separate_biases

FILE_NAME = "model.onnx"

_BLOCK_SIZES = (16, 32, 64, 128)

DIALECT = Dialect(
    name="onnx-cpu",
    opset=26,
    # x86 processors with VNNI, and the kernels of ONNX Runtime for them, multiply unsigned by signed bytes.
    activation=TensorFormat("uint8", symmetric=False),
    weight=TensorFormat("int8", symmetric=True, granularity="channel"),
    operators=frozenset({"MatMul", "Gemm", "Conv"}),
    bias="int32",
    dynamic=True,
    # MatMul and Gemm have kernels with float output; Conv runs in integers only between Q/DQ pairs.
    quantize_outputs=frozenset({"Conv"}),
    carried=frozenset(
        {"Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool", "ReduceMean", "MaxPool"}
    ),
    weight_only=(
        WeightFormat("int8", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21),
        WeightFormat("uint8", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21, offsets=True),
        WeightFormat("int4", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21),
        WeightFormat("uint4", symmetric=False, block_sizes=_BLOCK_SIZES, opset=21, offsets=True),
        WeightFormat("int2", symmetric=False, block_sizes=_BLOCK_SIZES, opset=25),
        WeightFormat("uint2", symmetric=False, block_sizes=_BLOCK_SIZES, opset=25, offsets=True),
        WeightFormat("float8e4m3fn"),
    ),
    float8="simulated",
    # Convolutions keep channels in blocks of 16 (of 8 without AVX-512); depthwise ones of another width leave them
    # for kernels that are several times slower.
    alignment={"float32": 16},
    refusals={"int16": "ONNX Runtime's kernels for processors multiply activations of 8 bits in integers, not of 16"},
)


class OnnxCpu(Target):
    """ONNX Runtime on a CPU: one `model.onnx`, loaded by the user at the default optimization level (all)."""

    dialect = DIALECT
    for_onnx_runtime = True

    def check(self, model: Model) -> Verdict:
        """Return whether ONNX Runtime loads the graph, with its reason when it does not."""
        reason = too_new(model.graph, "ONNX Runtime", self.dialect.opset)
        if reason:
            return Verdict.refuse(reason)
        try:
            ReferenceSession(model.ir, prepack=False)
        except ModelError as error:
            return Verdict.refuse(error.what)
        return Verdict.ok()

    def lower(self, model: Model, context: Context[None]) -> Model:
        """Return the graph in the form that ONNX Runtime executes fastest on a CPU.

        Outputs stay equal up to float noise, and in quantized graphs up to the codes that this noise moves. Only where
        products of weights of few bits allow it (`ACTIVATIONS_KEY`), their inputs are rounded to 8 bits as the graph
        runs: outputs then keep at least 10 dB against those with inputs in float, and a remark says by how much they
        move.
        """
        return model.with_ir(lower(model.ir.clone(), context))

    def build(self, model: Model, directory: Path) -> Build:
        """Write `model.onnx`, and its weights beside it where they are too large for one file.

        Q/DQ pairs of eight-bit floats are written as casts, bit for bit equal, because ONNX Runtime does not load them.
        Biases beside scales in float16 are added by nodes of their own, because ONNX Runtime loses them otherwise.

        Raises:
            TargetError: ONNX Runtime does not load the graph at the level that users run; at the level basic if the
                graph is too large for the memory that is free.
        """
        # Exporters write stack traces and module paths, which are bytes to ship and tell of the exporting machine.
        plain = model.ir.clone()
        common_passes.ClearMetadataAndDocStringPass()(plain)
        casts, biases = write_float8_casts(plain.graph), separate_biases(plain.graph)
        if biases:
            common_passes.RemoveUnusedNodesPass()(plain)
        # At the level of users the runtime computes all it can from constants, and holds float16 weights as float32.
        level: Optimization = "basic" if obstacle_to_running(plain) else "default"
        try:
            ReferenceSession(plain, optimization=level, prepack=False)
        except ModelError as error:
            raise TargetError(
                f"ONNX Runtime does not load the lowered graph: {error.what}",
                expected="a graph that loads at the optimization level that users run",
                why="an artifact that does not load is of no use",
                fix="report this with the recipe; a step without the failing operator may work",
            ) from error
        write_onnx(plain, directory / FILE_NAME)
        import onnxruntime

        recipe = {
            "runtime": "onnxruntime",
            "version": onnxruntime.__version__,
            "optimization": "all",
            "loaded_at": level,
        }
        rewritten = {"float8_pairs_as_casts": casts, "separate_biases": biases}
        return Build(FILE_NAME, recipe | {name: count for name, count in rewritten.items() if count})
