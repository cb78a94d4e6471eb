"""The target `android-qnn`: fixed shapes, pairs around every quantized operator, context binaries for each chip."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.errors import TargetError
from edgesmith.frontends.fixed_dimensions import open_dimensions
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import too_new
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.profile import Profile, load_profile
from edgesmith.serialization import write_onnx
from edgesmith_onnxruntime.lowering import as_rewrite, lower_to_standard
from edgesmith_onnxruntime.qnn import simulator
from edgesmith_onnxruntime.qnn.dialect import dialect_of
from edgesmith_onnxruntime.qnn.factor_order import write_factors_second
from edgesmith_onnxruntime.qnn.operators import obstacle
from edgesmith_onnxruntime.separate_biases import separate_biases

FILE_NAME, RECIPE_FILE, SCRIPT_FILE = "model.onnx", "build.json", "build_context.py"
PROFILE = "edgesmith_onnxruntime:profiles/android-qnn.toml"

LARGEST_BYTES_AT_ONCE = 64 * 2**20
"""Models up to this size are compiled for every architecture at once; each binary is one to three times as large."""

_CODES = {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32}


class AndroidQnn(Target):
    """The Hexagon Tensor Processor of Qualcomm's phones, through ONNX Runtime and its QNN provider."""

    def __init__(self, profile: Profile | None = None) -> None:
        super().__init__(profile)
        self.device = profile or load_profile(PROFILE)
        if self.device.hexagon is None:
            raise TargetError(
                f"Profile {self.device.name} has no architectures of the tensor processor",
                expected="a table [hexagon] with architectures",
                why="a context binary is for one architecture",
                fix='write extends = "android-qnn" into it, which brings the table',
            )
        self.hexagon = self.device.hexagon
        self.dialect = dialect_of(self.device)

    def check(self, model: Model) -> Verdict:
        """Return whether the QNN provider takes the graph, as far as its documentation says."""
        reason = too_new(model.graph, self.device.name, self.dialect.opset)
        if reason:
            return Verdict.refuse(reason)
        dimensions = open_dimensions(model.ir)
        if dimensions:
            names, inputs = ", ".join(dimensions), dict.fromkeys(name for name, _ in dimensions.values())
            reason = f"the dimensions {names} of its inputs are open, and QNN plans for fixed sizes; add --shape"
            return Verdict.refuse(f"{reason} NAME=SIZE for each", nodes=tuple(inputs))
        for node in model.graph.all_nodes():
            reason = "; ".join(obstacle(node) or ()) or _unknown_codes(node)
            if reason:
                return Verdict.refuse(reason, nodes=(node_name(node),))
        return Verdict.ok()

    def lower(self, model: Model, context: Context[None]) -> Model:
        """Return the graph cleaned, in ONNX's own operators; where Qualcomm's simulator is installed, it runs there.

        Raises:
            TargetError: The compiler for the tensor processor rejects the graph.
        """
        order = as_rewrite(write_factors_second, "Wrote {} constant factors behind what they multiply.")
        lowered = model.with_ir(lower_to_standard(model.ir, context, (order,)))
        if self.check(lowered).status == "refuse":
            return lowered  # the host asks again and says why
        folder = context.scratch / "simulator"
        folder.mkdir()
        self.build(lowered, folder)
        with context.progress.stage("running Qualcomm's simulator"):
            answer = simulator.run(folder, lowered, self.hexagon, context)
        if answer.status == "rejected":
            raise TargetError(
                f"QNN rejects the graph for {answer.architecture}: {answer.message}",
                expected="a graph that Qualcomm's compiler builds",
                why="The phone could not load it either.",
                fix=f"{_remedy(lowered)}, mend what `edgesmith lint` finds, or compile for android-cpu.",
            )
        context.notes.remark(answer.remark())
        return lowered

    def build(self, model: Model, directory: Path) -> Build:
        """Write `model.onnx` and how to compile it for each architecture."""
        plain = model.ir.clone()
        common_passes.ClearMetadataAndDocStringPass()(plain)
        if separate_biases(plain.graph):
            common_passes.RemoveUnusedNodesPass()(plain)
        write_onnx(plain, directory / FILE_NAME)
        pairs = any(node.op_type == "QuantizeLinear" for node in plain.graph)
        fitting = [each for each in self.hexagon.architectures if pairs or each.float16]
        recipe = {
            "model": FILE_NAME,
            "target": self.device.name,
            "runtimes": [f"{each.name} {each.versions} {each.platform}".strip() for each in self.device.runtimes],
            "architectures": [
                {"name": each.name, "soc_model": each.soc_model, "chips": list(each.chips)} for each in fitting
            ],
        }
        (directory / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        script = resources.files(__package__) / "context.py"
        (directory / SCRIPT_FILE).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
        return Build(FILE_NAME, recipe)

    def finish(self, directory: Path) -> Mapping[str, object]:
        """Add a context binary for each architecture, where onnxruntime-qnn is installed and the model is not large."""
        size = sum(path.stat().st_size for path in directory.glob(f"{FILE_NAME}*"))
        if size > LARGEST_BYTES_AT_ONCE:
            return {"contexts": f"not built at once, as the model has {size >> 20} MiB; run {SCRIPT_FILE}"}
        return {"contexts": simulator.build_contexts(directory)}


def _remedy(model: Model) -> str:
    """Return what to try first where Qualcomm's compiler fails."""
    if not any(node.op_type == "QuantizeLinear" for node in model.graph):
        return "Quantize it (--recipe int8 with --data)"
    by_us = model.provenance.fixed_sizes
    return "Make its inputs smaller (--shape NAME=SIZE)" if by_us else "Export it with smaller inputs"


def _unknown_codes(node: ir.Node) -> str:
    """Return why QNN does not take the codes that a node writes or reads, or an empty string."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        place = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        dtype = place.dtype if place is not None else None
        if dtype is not None and dtype not in _CODES:
            return f"codes of {dtype.name.lower()} are unknown to QNN; use quantize-int8"
    return ""
