"""TensorRT on one device: a strongly typed ONNX graph, and the recipe that builds the engine where it runs."""

from pathlib import Path

import onnx_ir as ir
import onnx_ir.passes.common as common_passes

from edgesmith.engine import EngineReport
from edgesmith.errors import TargetError
from edgesmith.graph.node_names import node_name
from edgesmith.graph.opset import too_new
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.profile import Profile
from edgesmith.serialization import write_onnx
from edgesmith_tensorrt.bfloat16 import as_bfloat16, is_rounded, lower_to_bfloat16
from edgesmith_tensorrt.build_recipe import build_recipe, record_shapes, recorded_shapes, write_recipe
from edgesmith_tensorrt.dialect import dialect_of
from edgesmith_tensorrt.engine_layers import read_engine
from edgesmith_tensorrt.gate import ask_compiler, build_here
from edgesmith_tensorrt.last_steps import take_last_steps
from edgesmith_tensorrt.lints.integer_operators import OPERATORS
from edgesmith_tensorrt.lints.reading import PAIRS
from edgesmith_tensorrt.lints.whole_blocks import has_partial_block
from edgesmith_tensorrt.precision import lower_to_half
from edgesmith_tensorrt.rejection import rejected

FILE_NAME = "model.onnx"
REFERENCE_FILE_NAME = "reference.onnx"
"""Beside a graph in bfloat16 the one that ONNX Runtime runs."""


class TensorRT(Target):
    """TensorRT or TensorRT for RTX on the device of a profile."""

    def __init__(self, profile: Profile | None = None) -> None:
        if profile is None:
            raise TargetError(
                "TensorRT was asked for without a device profile",
                expected="the profile of one device",
                why="formats, opset and limits differ from device to device",
                fix="name a target such as jetson-orin-nano",
            )
        super().__init__(profile)
        self.device = profile
        self.dialect = dialect_of(profile)

    def check(self, model: Model) -> Verdict:
        """Return whether TensorRT's parser takes the graph, as far as its documented rules say."""
        reason = too_new(model.graph, self.device.name, self.dialect.opset)
        if reason:
            return Verdict.refuse(f"{reason}, and leave out steps whose formats need more")
        handed_on = [str(value.name) for value in model.graph.outputs if value.is_graph_input()]
        if handed_on:
            reason = f"{', '.join(handed_on)} is an input and an output of the graph, which TensorRT does not build"
            return Verdict.refuse(f"{reason}; leave it out of the outputs, since whoever feeds it has it")
        for node in model.graph.all_nodes():
            name = node_name(node)
            if node.domain:
                reason = f"{node.op_type} of {node.domain} is unknown to TensorRT; compile the source, not an artifact"
                return Verdict.refuse(reason, nodes=(name,))
            if node.op_type in OPERATORS:
                reason = f"{node.op_type} is a form that TensorRT does not parse; it takes QuantizeLinear pairs"
                return Verdict.refuse(reason, nodes=(name,))
            if node.op_type in PAIRS and has_partial_block(node):
                reason = f"{node.op_type} {name} ends in a shorter block, and TensorRT takes whole blocks only"
                return Verdict.refuse(reason, nodes=(name,))
        return Verdict.ok()

    def lower(self, model: Model, context: Context[None]) -> Model:
        """Return the graph with its precision written into it: float16 where that holds, float32 elsewhere.

        Where an NVIDIA compiler is installed, it is asked whether it takes the graph.

        Raises:
            TargetError: It does not; the message names the node.
        """
        source = model.ir.clone()
        take_last_steps(source)
        lower = lower_to_bfloat16 if self.device.formats.tensors == "bfloat16" else lower_to_half
        lowered = model.with_ir(lower(source, context))
        record_shapes(lowered, context.calibration)
        if self.check(lowered).status == "refuse":
            # Whoever compiles is told why; NVIDIA's compiler would say less.
            return lowered
        folder = context.scratch / "gate"
        folder.mkdir()
        self.build(lowered, folder)
        with context.progress.stage("asking NVIDIA's compiler"):
            answer = ask_compiler(folder, self.device)
        if answer.status == "rejected":
            raise rejected(self.device.name, answer, lowered.graph)
        context.notes.remark(answer.remark())
        return lowered

    def build(self, model: Model, directory: Path) -> Build:
        """Write `model.onnx`, and for a lowered graph how to build the engine from it on the device.

        A stage on the way is written to be measured in the reference, and nothing is built of it.
        """
        _write_plain(model.ir, directory / FILE_NAME)
        if recorded_shapes(model.ir) is None:
            return Build(FILE_NAME)
        recipe = build_recipe(model, self.device, FILE_NAME)
        write_recipe(recipe, directory)
        if is_rounded(model.ir):
            _write_plain(model.ir, directory / REFERENCE_FILE_NAME)
            _write_plain(as_bfloat16(model.ir), directory / FILE_NAME)
            return Build(REFERENCE_FILE_NAME, recipe)
        return Build(FILE_NAME, recipe)

    def finish(self, directory: Path) -> dict[str, object]:
        """Build the engine too, where this machine can build what the device runs; else it is built there."""
        engine = build_here(directory, self.device)
        return {"engine": engine} if engine else {}

    def read_engine(self, model: Model, layers: str, times: str = "") -> EngineReport:
        """Return what TensorRT built, from `--exportLayerInfo` and `--exportProfile` or the engine inspector."""
        return read_engine(model, layers, times)


def _write_plain(model: ir.Model, path: Path) -> None:
    """Write a graph without the notes of exporters and methods in its nodes."""
    plain = model.clone()
    common_passes.ClearMetadataAndDocStringPass()(plain)
    write_onnx(plain, path)
