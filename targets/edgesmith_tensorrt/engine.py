"""Builds a TensorRT engine from `model.onnx` as `build.json` says.

This file travels with every artifact as `build.py`. It needs Python and one of the modules that `build.json` names, of
TensorRT or of TensorRT for RTX. On the machine that compiles, the same file checks in a child process whether a graph
parses and builds.

    python3 build.py                        # build engine.plan beside model.onnx, or take it if nothing changed
    python3 build.py --check --module tensorrt_rtx --compute-capability 8.6
    python3 build.py --cache DIRECTORY      # keep engines there too, under a key of all that they depend on

The last line on standard output is JSON. Exit codes: 0 built, 1 rejected by TensorRT, 2 TensorRT is missing or broken.
"""

import argparse
import hashlib
import importlib
import json
import platform
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

BUILT, REJECTED, MISSING = 0, 1, 2
ENGINE, RECORD = "engine.plan", "engine.json"


def load_module(names: tuple[str, ...]) -> ModuleType:
    """Return the first of the modules that can be imported.

    Raises:
        ImportError: None of them can.
    """
    reasons = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(f"{name}: {error}")
    raise ImportError("; ".join(reasons))


def build_engine(trt: ModuleType, model: Path, recipe: dict[str, Any], capability: str, cache: Path | None) -> Any:
    """Return the serialized engine, and facts about it.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`: both have this API.
        model: The ONNX file, with external data beside it.
        recipe: Content of `build.json`.
        capability: Compute capability to build for, such as "8.6"; empty for the GPU of this machine.
        cache: Timing cache to read and to update, if any.

    Returns:
        The engine, or None where it was rejected, and a mapping with the errors, each with node and operator.
    """
    logger = _collector(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, recipe))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        return None, {"stage": "parse", "errors": _parser_errors(parser)}
    config = builder.create_builder_config()
    _configure(trt, config, recipe, capability)
    profile = builder.create_optimization_profile()
    for name, shapes in recipe.get("shapes", {}).items():
        profile.set_shape(name, tuple(shapes["min"]), tuple(shapes["opt"]), tuple(shapes["max"]))
    if recipe.get("shapes"):
        config.add_optimization_profile(profile)
    # TensorRT for RTX times nothing ahead of time; its timing caches are deprecated and empty.
    timing = None if cache is None or _is_for_rtx(trt) else _use_timing_cache(config, cache)
    engine = builder.build_serialized_network(network, config)
    facts: dict[str, Any] = {"stage": "build", "layers": network.num_layers, "errors": []}
    if timing:
        facts["timing_cache"] = timing
    if engine is None:
        # Without a driver each build complains of that too, which is no reason to reject a graph.
        told = [text for text in logger.messages if "Cuda Runtime" not in text] or logger.messages
        facts["errors"] = [{"node": "", "operator": "", "message": text} for text in told[-5:]]
        return None, facts
    if cache is not None and timing:
        _replace(cache, bytes(config.get_timing_cache().serialize()))
    return bytes(engine), {**facts, "bytes": engine.nbytes}


def _is_for_rtx(trt: ModuleType) -> bool:
    return trt.__name__.startswith("tensorrt_rtx")


def _network_flags(trt: ModuleType, recipe: dict[str, Any]) -> int:
    # From TensorRT 11 on every network is strongly typed, and the flag may be gone.
    flag = getattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    return 1 << int(flag) if flag is not None and not _needs_precision_flag(trt, recipe) else 0


def _needs_precision_flag(trt: ModuleType, recipe: dict[str, Any]) -> bool:
    """Return whether precision must be a flag: TensorRT 10 documents no other way onto the DLA."""
    return recipe.get("dla_core") is not None and hasattr(trt.BuilderFlag, "FP16")


def _use_timing_cache(config: Any, file: Path) -> str:
    """Let the builder take kernel times from `file`; return whether those were used, or an empty string without one.

    A file of another device or version, or a damaged one, is replaced: it saves time and must never cost an engine.
    """
    if not hasattr(config, "create_timing_cache"):
        return ""
    for content, meaning in ((file.read_bytes() if file.is_file() else b"", "used"), (b"", "new")):
        try:
            timing = config.create_timing_cache(content)
            # A timing cache of another GPU is not taken: its times would choose the wrong kernels.
            if timing is not None and config.set_timing_cache(timing, False):
                return meaning if content else "new"
        except (RuntimeError, ValueError, TypeError):
            continue
    return ""


def _configure(trt: ModuleType, config: Any, recipe: dict[str, Any], capability: str) -> None:
    config.builder_optimization_level = recipe.get("builder_optimization_level", 3)
    if recipe.get("workspace_bytes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe["workspace_bytes"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if recipe.get("sparse_weights"):
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if recipe.get("dla_core") is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = recipe["dla_core"]
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        if _needs_precision_flag(trt, recipe):
            config.set_flag(trt.BuilderFlag.FP16)
    if capability and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), 0)


def _parser_errors(parser: Any) -> list[dict[str, str]]:
    errors = (parser.get_error(index) for index in range(parser.num_errors))
    return [{"node": error.node_name(), "operator": error.node_operator(), "message": error.desc()} for error in errors]


def _collector(trt: ModuleType) -> Any:
    """Return a logger that keeps warnings and errors, so that a failed build can say why."""

    class Collector(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.messages.append(message)

    return Collector()


def engine_key(trt: ModuleType, model: Path, recipe: dict[str, Any], capability: str) -> str:
    """Return what makes an engine valid: graph and weights, recipe, TensorRT version, GPU and platform."""
    facts = [recipe, trt.__version__, capability or _device(), platform.machine(), platform.system()]
    files = sorted(model.parent.glob(model.name + "*"))
    return _hash(*files, facts=json.dumps(facts, sort_keys=True).encode())


def _own_capability(trt: ModuleType, recipe: dict[str, Any]) -> str:
    """Return what is built for where nobody says: the recipe's card, ahead of time, or empty for this machine's GPU."""
    wanted = str(recipe.get("compute_capability") or "")
    known = _is_for_rtx(trt) and hasattr(trt.ComputeCapability, "SM" + wanted.replace(".", ""))
    return wanted if known else ""


def _device() -> str:
    """Return the name of the GPU's driver and board as the system shows them, so that another GPU is another key."""
    shown = [Path("/proc/driver/nvidia/version"), Path("/proc/device-tree/model")]
    shown += sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return "\n".join(path.read_text(errors="replace") for path in shown if path.is_file())


def main() -> int:
    """Build or check as the command line says, and write one line of JSON."""
    arguments = _arguments()
    folder = Path(arguments.recipe).resolve().parent
    recipe = json.loads(Path(arguments.recipe).read_text(encoding="utf-8"))
    try:
        trt = load_module(tuple(arguments.module or recipe["modules"]))
    except ImportError as error:
        return _answer(MISSING, {"status": "missing", "errors": [{"message": str(error)}]})
    model, capability = folder / recipe["model"], arguments.compute_capability or _own_capability(trt, recipe)
    facts = {"module": trt.__name__, "version": trt.__version__, "compute_capability": capability}
    if arguments.check:
        engine, found = _timed(trt, model, recipe, capability, None)
        return _answer(REJECTED if engine is None else BUILT, {**facts, **found})
    key = engine_key(trt, model, recipe, capability)
    shared = Path(arguments.cache) / key if arguments.cache else None
    for place in (folder, shared):
        known = _known(place, key)
        if place is not None and known:
            if place != folder:
                _copy(place, folder)
            return _answer(BUILT, {**known, "status": "cached"})
    # Times of kernels are of one device and version.
    timing = folder / "timing.cache"
    if shared is not None:
        shared.parent.mkdir(parents=True, exist_ok=True)
        timing = shared.parent / f"timing-{trt.__name__}-{trt.__version__}-{capability or 'local'}.cache"
    engine, found = _timed(trt, model, recipe, capability, timing)
    facts |= found
    if engine is None:
        return _answer(REJECTED, facts)
    _replace(folder / ENGINE, engine)
    _replace(folder / RECORD, json.dumps({**facts, "key": key, "sha256": _hash(folder / ENGINE)}, indent=2).encode())
    if shared is not None:
        _copy(folder, shared)
    return _answer(BUILT, facts)


def _timed(
    trt: ModuleType, model: Path, recipe: dict[str, Any], capability: str, cache: Path | None
) -> tuple[Any, dict[str, Any]]:
    started = time.monotonic()
    engine, found = build_engine(trt, model, recipe, capability, cache)
    seconds = round(time.monotonic() - started, 3)
    return engine, {**found, "seconds": seconds, "status": "rejected" if engine is None else "built"}


def _known(place: Path | None, key: str) -> dict[str, Any]:
    """Return the facts of the engine in a directory if it is the one of this key, and nothing otherwise."""
    if place is None or not (place / ENGINE).is_file() or not (place / RECORD).is_file():
        return {}
    try:
        known: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return known if known.get("key") == key and known.get("sha256") == _hash(place / ENGINE) else {}


def _hash(*paths: Path, facts: bytes = b"") -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for chunk in iter(lambda file=file: file.read(1 << 20), b""):  # type: ignore[misc]
                digest.update(chunk)
    digest.update(facts)
    return digest.hexdigest()


def _copy(source: Path, destination: Path) -> None:
    """Copy an engine with its record, the record last: where that is, the engine is whole."""
    destination.mkdir(parents=True, exist_ok=True)
    for name in (ENGINE, RECORD):
        partial = destination / (name + ".partial")
        shutil.copyfile(source / name, partial)
        partial.replace(destination / name)


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build a TensorRT engine as build.json says.")
    parser.add_argument("--recipe", default=str(Path(__file__).with_name("build.json")))
    parser.add_argument("--module", action="append", default=[], help="Python module of TensorRT to use.")
    parser.add_argument("--compute-capability", default="", help="Build for this GPU; TensorRT for RTX only.")
    parser.add_argument("--check", action="store_true", help="Parse and build, but write nothing.")
    parser.add_argument("--cache", default="", help="Directory in which engines are kept for other artifacts.")
    return parser.parse_args()


def _answer(code: int, facts: dict[str, Any]) -> int:
    sys.stdout.write(json.dumps(facts) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
