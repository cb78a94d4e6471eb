"""What an artifact carries so that the engine can be built where it runs: `build.json`, `build.py` and `build.sh`."""

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import onnx_ir as ir

from edgesmith.errors import DataError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import dimensions_for, runnable_dimensions
from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.group_sparsity import group_sparse_weights
from edgesmith.model import Model
from edgesmith.profile import Profile
from edgesmith_calibration.preprocessing import TextPreprocessing
from edgesmith_tensorrt.dialect import dialect_of

RECIPE_FILE, PYTHON_FILE, SHELL_FILE = "build.json", "build.py", "build.sh"

_USUAL_MEMORY_BYTES = 8 * 10**9
"""Taken where a profile leaves the memory of its device open."""
_LARGEST_BATCH = 8
_USUAL_LENGTH = 128
_LENGTHS = (512, 256, 128, 64, 32, 16, 8)

_SCRIPT = """#!/bin/sh
# Builds engine.plan on the device. Set TRTEXEC where trtexec is not on the PATH.
set -eu
cd "$(dirname "$0")"
"${TRTEXEC:-trtexec}" \\
    %s
"""
_DLA_SCRIPT = """#!/bin/sh
# Builds engine.plan on the device. Set TRTEXEC where trtexec is not on the PATH.
set -eu
cd "$(dirname "$0")"
# TensorRT 10 documents the DLA with a precision flag only, and TensorRT 11 has no such flag.
if "${TRTEXEC:-trtexec}" --help 2>&1 | grep -q -e '--fp16'; then precision=--fp16; else precision=--stronglyTyped; fi
"${TRTEXEC:-trtexec}" "$precision" \\
    %s
"""

Shapes = dict[str, dict[str, list[int]]]

_SHAPES_KEY = "edgesmith.optimization_shapes"
"""Metadata of a lowered graph: its shapes, which take several runs to find."""


def record_shapes(model: Model) -> None:
    """Find the optimization shapes of `model` and keep them in it, so that they are found once."""
    model.ir.metadata_props[_SHAPES_KEY] = json.dumps(optimization_shapes(model))


def recorded_shapes(model: ir.Model) -> Shapes | None:
    """Return the optimization shapes that a lowered graph carries; None for a graph that was not lowered."""
    text = model.metadata_props.get(_SHAPES_KEY)
    return None if text is None else dict(json.loads(text))


def build_recipe(model: Model, profile: Profile, file_name: str) -> dict[str, object]:
    """Return how to build the engine for `model` on the device of `profile`, as JSON data."""
    shapes = recorded_shapes(model.ir)
    core = profile.dla.core if profile.dla else None
    return {
        "model": file_name,
        "target": profile.name,
        "compute_capability": profile.device.compute_capability,
        "runtimes": [f"{runtime.name} {runtime.versions} {runtime.platform}".strip() for runtime in profile.runtimes],
        "strongly_typed": True,
        "builder_optimization_level": 3,
        # Half of the memory: the other half holds weights, activations and everything else on the board.
        "workspace_bytes": (profile.device.memory_bytes or _USUAL_MEMORY_BYTES) // 2,
        "dla_core": core,
        "sparse_weights": _has_sparse_weights(model, profile),
        "shapes": _for_device(optimization_shapes(model) if shapes is None else shapes, fixed=core is not None),
    }


def _has_sparse_weights(model: Model, profile: Profile) -> bool:
    """Return whether weights follow the pattern of sparse kernels, which the builder tries only where asked to."""
    pattern = dialect_of(profile).sparse_weights
    return bool(pattern) and bool(group_sparse_weights(model.ir, *map(int, pattern.split(":"))))


def _for_device(shapes: Shapes, *, fixed: bool) -> Shapes:
    """Return `shapes` as they are, or with the usual one for all: a DLA takes no other."""
    return {name: dict.fromkeys(each, each["opt"]) if fixed else each for name, each in shapes.items()}


def optimization_shapes(model: Model) -> Shapes:
    """Return smallest, most usual and largest shape of each input that has a dimension without a number.

    The first dimension is a batch of 1 to 8, tuned for 1. Others are lengths, tuned for what the preprocessing cuts
    to, or for 128. The largest length is the first of that, 512, 256 and so on on which the graph runs: tables of
    positions end somewhere. A graph that runs at no other length keeps one.
    """
    if all(isinstance(size, int) for value in model.graph.inputs for size in value.shape or ()):
        return {}
    preprocessing = model.task.preprocessing
    cut = preprocessing.max_length if isinstance(preprocessing, TextPreprocessing) else None
    session = ReferenceSession(model.ir)
    longest = next((length for length in ((cut,) if cut else _LENGTHS) if _runs(session, model, length)), None)
    if longest is None:
        sizes = runnable_dimensions(model.ir)
        fixed = {name: list(array.shape) for name, array in sample_inputs(model.ir, dimensions=sizes).items()}
        return {name: {"min": shape, "opt": shape, "max": shape} for name, shape in fixed.items()}
    shortest = 1 if _runs(session, model, 1) else longest
    usual = min(longest, cut or _USUAL_LENGTH)
    bounds = {"min": (1, shortest), "opt": (1, usual), "max": (_LARGEST_BATCH, longest)}
    return {
        str(value.name): {name: _shape(value, *sizes) for name, sizes in bounds.items()}
        for value in model.graph.inputs
        if value.shape is not None and not all(isinstance(size, int) for size in value.shape)
    }


def _shape(value: ir.Value, batch: int, length: int) -> list[int]:
    sizes = value.shape or ()
    return [size if isinstance(size, int) else length if axis else batch for axis, size in enumerate(sizes)]


def _runs(session: ReferenceSession, model: Model, length: int) -> bool:
    try:
        session.run(sample_inputs(model.ir, dimensions=dimensions_for(model.ir, 1, length)))
    except (ModelError, DataError):
        return False
    return True


def write_recipe(recipe: Mapping[str, object], directory: Path) -> None:
    """Write `build.json`, `build.py` and `build.sh` to an existing directory."""
    (directory / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    script = resources.files(__package__) / "engine.py"
    (directory / PYTHON_FILE).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    shell = directory / SHELL_FILE
    shell.write_text(shell_script(recipe), encoding="utf-8")
    shell.chmod(0o755)


def shell_script(recipe: Mapping[str, object]) -> str:
    """Return the same build for trtexec, which comes with JetPack and with TensorRT."""
    words = ["--onnx=" + str(recipe["model"]), "--saveEngine=engine.plan", "--timingCacheFile=timing.cache"]
    dla_core = recipe.get("dla_core")
    # TensorRT 10 needs it, TensorRT 11 ignores it.
    words += ["--stronglyTyped"] if dla_core is None else [f"--useDLACore={dla_core}", "--allowGPUFallback"]
    words += ["--skipInference", "--profilingVerbosity=detailed"]
    words += [f"--builderOptimizationLevel={recipe['builder_optimization_level']}"]
    words += [f"--memPoolSize=workspace:{int(str(recipe['workspace_bytes'])) >> 20}M"]
    if recipe.get("sparse_weights"):
        words.append("--sparsity=enable")
    shapes = recipe["shapes"]
    if isinstance(shapes, Mapping) and shapes:
        for bound in ("min", "opt", "max"):
            spec = ",".join(f"{name}:{'x'.join(map(str, each[bound]))}" for name, each in shapes.items())
            words.append(f"--{bound}Shapes={spec}")
    script = _SCRIPT if dla_core is None else _DLA_SCRIPT
    return script % " \\\n    ".join(map(shlex.quote, words))
