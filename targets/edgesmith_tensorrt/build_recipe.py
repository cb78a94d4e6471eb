"""What an artifact carries to build the engine where it runs: `build.json`, `build.py`, and for TensorRT `build.sh`."""

import json
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgesmith.graph.group_sparsity import group_sparse_weights
from edgesmith.model import Model
from edgesmith.profile import Profile
from edgesmith_tensorrt.dialect import dialect_of
from edgesmith_tensorrt.optimization_shapes import Shapes, optimization_shapes

if TYPE_CHECKING:
    from edgesmith_calibration.sources import DataSource

RECIPE_FILE, PYTHON_FILE, SHELL_FILE = "build.json", "build.py", "build.sh"

_USUAL_MEMORY_BYTES = 8 * 10**9
"""Taken where a profile leaves the memory of its device open."""

MODULES: Mapping[str, tuple[str, ...]] = {
    "TensorRT": ("tensorrt",),
    "TensorRT-RTX": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Runtime of a profile to the Python modules that build for it, best first."""

_START = """#!/bin/sh
# Builds engine.plan on the device. Set TRTEXEC where trtexec is neither on the PATH nor where JetPack puts it.
set -eu
cd "$(dirname "$0")"
: "${TRTEXEC:=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)}"
# What build.py noted is about the engine before.
rm -f engine.json
"""
_SCRIPT = (
    _START
    + """"$TRTEXEC" \\
    %s
"""
)
_DLA_SCRIPT = (
    _START
    + """# TensorRT 10 documents the DLA with a precision flag only, and TensorRT 11 has no such flag.
if "$TRTEXEC" --help 2>&1 | grep -q -e '--fp16'; then precision=--fp16; else precision=--stronglyTyped; fi
"$TRTEXEC" "$precision" \\
    %s
"""
)

_SHAPES_KEY = "edgesmith.optimization_shapes"
"""Metadata of a lowered graph: its shapes, which take several runs to find."""


def record_shapes(model: Model, samples: "DataSource | None" = None) -> None:
    """Find the optimization shapes of `model` and keep them in it, so that they are found once.

    Args:
        model: The lowered graph; only its metadata is changed.
        samples: Data whose shapes are typical.
    """
    model.ir.metadata_props[_SHAPES_KEY] = json.dumps(optimization_shapes(model, samples))


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
        "modules": modules_of(profile),
        "runtimes": [f"{runtime.name} {runtime.versions} {runtime.platform}".strip() for runtime in profile.runtimes],
        "strongly_typed": True,
        "builder_optimization_level": 3,
        # Half of the memory: the other half holds weights, activations and everything else on the board.
        "workspace_bytes": (profile.device.memory_bytes or _USUAL_MEMORY_BYTES) // 2,
        "dla_core": core,
        "sparse_weights": _has_sparse_weights(model, profile),
        "shapes": _for_device(optimization_shapes(model) if shapes is None else shapes, fixed=core is not None),
    }


def modules_of(profile: Profile) -> list[str]:
    """Return the Python modules that build for the runtimes of `profile`, best first."""
    return list(dict.fromkeys(module for runtime in profile.runtimes for module in MODULES.get(runtime.name, ())))


def _has_sparse_weights(model: Model, profile: Profile) -> bool:
    """Return whether weights follow the pattern of sparse kernels, which the builder tries only where asked to."""
    pattern = dialect_of(profile).sparse_weights
    return bool(pattern) and bool(group_sparse_weights(model.ir, *map(int, pattern.split(":"))))


def _for_device(shapes: Shapes, *, fixed: bool) -> Shapes:
    """Return `shapes` as they are, or with the usual one for all: a DLA takes no other."""
    return {name: dict.fromkeys(each, each["opt"]) if fixed else each for name, each in shapes.items()}


def write_recipe(recipe: Mapping[str, Any], directory: Path) -> None:
    """Write `build.json` and `build.py` to an existing directory, and `build.sh` where trtexec builds the engine."""
    (directory / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
    script = resources.files(__package__) / "engine.py"
    (directory / PYTHON_FILE).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    if not set(MODULES["TensorRT"]) & set(recipe["modules"]):
        return  # trtexec builds for TensorRT only.
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
