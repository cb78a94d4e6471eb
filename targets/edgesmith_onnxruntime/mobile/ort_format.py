"""Adds the ORT format of `model.onnx` to an artifact, proven equal on samples in a child process."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgesmith.child_answer import ask_child
from edgesmith.errors import ModelError, TargetError
from edgesmith.execution.handover import obstacle_to_running
from edgesmith.execution.runnable import runnable_inputs
from edgesmith_onnxruntime.mobile import convert

Style = Literal["Fixed", "Runtime"]
"""Fixed: all optimizations are written into the file. Runtime: those that another provider could be in the way of are
saved beside the graph and applied where ONNX Runtime's own kernels run, for phones with Core ML or NNAPI."""

LARGEST_ERROR = 1e-5
"""Largest relative error (L2) of an output in ORT format. The same kernels run, so equal bits are expected."""

_LONGEST_SECONDS = 1800


def add_ort_format(directory: Path, model: ir.Model, style: Style) -> Mapping[str, object]:
    """Write the ORT format and its required operators beside `model.onnx`; return facts for the manifest.

    Args:
        directory: Holds `model.onnx`.
        model: The same graph, to make sample inputs for. One that does not run here is not compared.
        style: How optimizations are stored.

    Raises:
        TargetError: The converter failed, or the outputs of its file differ.
    """
    with tempfile.TemporaryDirectory(prefix="edgesmith-") as scratch:
        samples = _write_samples(model, Path(scratch) / "samples.npz")
        words = [str(directory), "--style", style, *(("--samples", str(samples)) if samples is not None else ())]
        answer = ask_child(convert.__file__, words, longest_seconds=_LONGEST_SECONDS)
    if answer.problem:
        raise _failed(answer.problem)
    facts = answer.facts
    for name, distance in facts.get("relative_errors", {}).items():
        if not distance <= LARGEST_ERROR:
            raise TargetError(
                f"Output {name!r} of {facts['file']} differs from that of model.onnx by {distance:.1e} (relative L2).",
                expected=f"at most {LARGEST_ERROR:.0e}",
                why="The phone would run something else than what was measured here.",
                fix="Report this with the recipe, and ship model.onnx, which ONNX Runtime's full packages load too.",
            )
    return facts


def _write_samples(model: ir.Model, file: Path) -> Path | None:
    if obstacle_to_running(model):
        return None
    try:
        inputs = runnable_inputs(model)
    except ModelError:
        return None
    with file.open("wb") as stream:
        np.savez(stream, **inputs)  # type: ignore[arg-type]
    return file


def _failed(reason: str) -> TargetError:
    return TargetError(
        f"The converter to the ORT format failed: {reason}",
        expected="a graph that onnxruntime.tools.convert_onnx_models_to_ort takes",
        why="Reduced builds of ONNX Runtime load no other format.",
        fix="Ship model.onnx with a full build (target onnx-cpu writes it), or report this with the recipe.",
    )
