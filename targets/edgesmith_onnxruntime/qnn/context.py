"""Compiles `model.onnx` for Qualcomm's tensor processor: one context binary for each architecture in `build.json`.

This file travels with every artifact as `build_context.py`. It needs Python, onnxruntime and onnxruntime-qnn, and
nothing else; no phone is needed. On the machine that compiles, the same file runs samples in Qualcomm's simulator.

    pip install onnxruntime onnxruntime-qnn
    python3 build_context.py                         # writes context/v73/model.onnx and so on
    python3 build_context.py --architecture v75
    python3 build_context.py --check --samples samples.npz --outputs outputs.npz --architecture v75

The last line on standard output is JSON. Exit codes: 0 done, 1 rejected by QNN, 2 the runtime is missing or broken.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

DONE, REJECTED, MISSING = 0, 1, 2
PROVIDER = "QNNExecutionProvider"
SIMULATED_SECONDS = 20
"""The simulator takes a thousand times as long as the chip, so samples end early."""


def open_provider() -> tuple[Any, Any, Any]:
    """Return the modules onnxruntime and onnxruntime_qnn, and the device of the provider.

    Raises:
        ImportError: One is not installed, or the provider offers no device.
    """
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    if not devices:
        raise ImportError(f"onnxruntime {onnxruntime.__version__} sees no device of {PROVIDER}")
    return onnxruntime, onnxruntime_qnn, devices[0]


def compile_context(provider: tuple[Any, Any, Any], model: Path, architecture: dict[str, Any], out: Path) -> Any:
    """Return a session on the tensor processor of one architecture, which also writes the context binary to `out`."""
    onnxruntime, qnn, device = provider
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_file_path", str(out))
    options.add_session_config_entry("ep.context_embed_mode", "1")
    backend = {
        "backend_path": qnn.get_qnn_htp_path(),
        "htp_arch": architecture["name"].removeprefix("v"),
        "soc_model": str(architecture["soc_model"]),
    }
    options.add_provider_for_devices([device], backend)
    return onnxruntime.InferenceSession(str(model), options)


def read_contexts(path: Path) -> dict[str, object]:
    """Return how many parts the compiled graph has, and what stays on the processor: operators, weights among them."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    outside: dict[str, int] = {}
    weights = 0
    for node in graph.node:
        if node.op_type != "EPContext":
            outside[node.op_type] = outside.get(node.op_type, 0) + 1
            weights += node.op_type == "DequantizeLinear" and node.input[0] in stored
    parts = sum(node.op_type == "EPContext" for node in graph.node)
    return {"parts": parts, "outside": outside, "dequantized_weights": weights}


def build(provider: tuple[Any, Any, Any], folder: Path, architecture: dict[str, Any]) -> dict[str, object]:
    """Write the context binary of one architecture under `context/`, and return facts about it, or why there is none.

    What one architecture cannot do, another may: those without float16 arithmetic reject every float operator.
    """
    recipe = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    out = folder / "context" / architecture["name"] / "model.onnx"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        compile_context(provider, folder / recipe["model"], architecture, out)
    except Exception as error:  # noqa: BLE001  exceptions of the runtime share no base class
        return {"status": "rejected", "message": first_line(error)}
    if not out.is_file():
        return {"status": "rejected", "message": "the provider took no part of the graph"}
    seconds = round(time.monotonic() - started, 1)
    return {"status": "built", "file": str(out.relative_to(folder)), "bytes": out.stat().st_size, "seconds": seconds}


def simulate(
    provider: tuple[Any, Any, Any], model: Path, architecture: dict[str, Any], samples: Path, outputs: Path
) -> dict[str, object]:
    """Run samples in the simulator, write what comes out to `outputs`, and return what ran where.

    Both files hold one array for each input or output, with the runs as a first dimension. At least one sample runs,
    and no further one starts after `SIMULATED_SECONDS`.
    """
    import numpy as np

    context = outputs.with_suffix(".onnx")
    context.unlink(missing_ok=True)
    session = compile_context(provider, model, architecture, context)
    facts = read_contexts(context) if context.is_file() else {"parts": 0, "outside": {}}
    feed = dict(np.load(samples))
    names = [each.name for each in session.get_inputs()]
    results: list[list[Any]] = []
    started = time.monotonic()
    for index in range(len(feed[names[0]])):
        results.append(session.run(None, {name: feed[name][index] for name in names}))
        if time.monotonic() - started > SIMULATED_SECONDS:
            break
    stacked = {
        each.name: np.stack([values[index] for values in results]) for index, each in enumerate(session.get_outputs())
    }
    with outputs.open("wb") as stream:
        np.savez(stream, **stacked)  # type: ignore[arg-type]
    seconds = round(time.monotonic() - started, 1)
    return {"status": "simulated", "runs": len(results), "seconds": seconds} | facts


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--recipe", type=Path, default=Path(__file__).with_name("build.json"))
    parser.add_argument("--architecture", help="Only this one, such as v75.")
    parser.add_argument("--check", action="store_true", help="Run samples in the simulator instead.")
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--outputs", type=Path)
    chosen = parser.parse_args(arguments)
    recipe = json.loads(chosen.recipe.read_text(encoding="utf-8"))
    known = {each["name"]: each for each in recipe["architectures"]}
    if chosen.architecture and chosen.architecture not in known:
        parser.error(f"--architecture: one of {', '.join(known)}")
    wanted = [known[chosen.architecture]] if chosen.architecture else list(known.values())
    facts: dict[str, Any]
    try:
        provider = open_provider()
    except (ImportError, OSError) as error:
        return _answer({"status": "missing", "message": str(error)}, MISSING)
    versions = {"onnxruntime": provider[0].__version__, "onnxruntime_qnn": provider[1].__version__}
    try:
        if chosen.check:
            model = chosen.recipe.parent / recipe["model"]
            facts = simulate(provider, model, wanted[0], chosen.samples, chosen.outputs)
        else:
            built = {each["name"]: build(provider, chosen.recipe.parent, each) for each in wanted}
            rejected = [name for name, one in built.items() if one["status"] != "built"]
            facts = {"status": "built" if len(rejected) < len(built) else "rejected", "contexts": built}
    except Exception as error:  # noqa: BLE001  exceptions of the runtime share no base class
        facts = {"status": "rejected", "message": first_line(error)}
    return _answer(facts | {"versions": versions}, REJECTED if facts["status"] == "rejected" else DONE)


def first_line(error: Exception) -> str:
    """Return what an exception says first."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _answer(facts: dict[str, Any], code: int) -> int:
    sys.stdout.write("\n" + json.dumps(facts) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
