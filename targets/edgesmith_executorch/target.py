"""The target `executorch-xnnpack`: the graph through torch.export into one .pte file."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir.passes.common as common_passes

from edgesmith.child_answer import ask_child
from edgesmith.errors import ModelError, TargetError, UnsupportedOperatorError
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.frontends.fixed_dimensions import open_dimensions
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect, TensorFormat
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.verdict import Verdict
from edgesmith.model import Model
from edgesmith.profile import Profile, load_profile
from edgesmith.serialization import read_onnx, write_onnx
from edgesmith_executorch import export

PROFILE = "edgesmith_executorch:profiles/executorch-xnnpack.toml"
LARGEST_ERROR = 1e-4
"""Largest relative error (L2) of an output of the .pte file: other kernels run, in float32."""

_LONGEST_SECONDS = 1800


class ExecuTorch(Target):
    """ExecuTorch with XNNPACK on a processor."""

    def __init__(self, profile: Profile | None = None) -> None:
        super().__init__(profile)
        self.device = profile or load_profile(PROFILE)
        self.dialect = Dialect(
            name=self.device.name,
            opset=self.device.opset,
            activation=TensorFormat("int8", symmetric=True),
            weight=TensorFormat("int8", symmetric=True, granularity="channel"),
            operators=frozenset(),
            fixed_shapes=True,
            refusals={name.removesuffix("-weights"): why for name, why in self.device.formats.absent.items()},
        )

    def check(self, model: Model) -> Verdict:
        """Return whether torch can run every operator, at fixed sizes."""
        names = ", ".join(open_dimensions(model.ir))
        if names:
            return Verdict.refuse(f"the dimensions {names} of its inputs are open; add --shape NAME=SIZE for each")
        try:
            TorchGraph(model.ir)
        except UnsupportedOperatorError as error:
            return Verdict.refuse(error.what)
        return Verdict.ok()

    def lower(self, model: Model, context: Context[None]) -> Model:
        """Return the graph as it is: torch.export and XNNPACK do the rest."""
        return model.clone()

    def build(self, model: Model, directory: Path) -> Build:
        """Write `model.onnx`, from which `finish` makes the .pte file."""
        plain = model.ir.clone()
        common_passes.ClearMetadataAndDocStringPass()(plain)
        write_onnx(plain, directory / export.MODEL)
        return Build(export.MODEL, {"runtimes": [f"{each.name} {each.versions}" for each in self.device.runtimes]})

    def finish(self, directory: Path) -> Mapping[str, object]:
        """Add `model.pte`, run on a sample in ExecuTorch's runtime and held against ONNX Runtime.

        Raises:
            TargetError: It cannot be exported, or its outputs differ.
        """
        with tempfile.TemporaryDirectory(prefix="edgesmith-") as scratch:
            samples = Path(scratch) / "samples.npz"
            try:
                inputs = runnable_inputs(read_onnx(directory / export.MODEL))
            except ModelError as error:
                raise _failed(error.what) from error
            with samples.open("wb") as stream:
                np.savez(stream, **inputs)  # type: ignore[arg-type]
            words = (str(directory), "--samples", str(samples))
            answer = ask_child(export.__file__, words, longest_seconds=_LONGEST_SECONDS)
        if answer.problem:
            raise _failed(answer.problem)
        facts = dict(answer.facts)
        for name, distance in facts["relative_errors"].items():
            if not distance <= LARGEST_ERROR:
                raise TargetError(
                    f"Output {name!r} of {export.FILE} differs from that of the graph by {distance:.1e} (relative L2).",
                    expected=f"at most {LARGEST_ERROR:.0e}",
                    why="The device would run something else than what was measured here.",
                    fix="Compile for android-cpu instead, or report this with the recipe.",
                )
        return {"executorch": facts}


def _failed(reason: str) -> TargetError:
    return TargetError(
        f"ExecuTorch's exporter failed: {reason}",
        expected="a graph that torch.export and the XNNPACK partitioner take",
        why="Without it there is no .pte file.",
        fix="Compile for android-cpu instead, or report this with the recipe.",
    )
