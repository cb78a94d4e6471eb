"""Weight-only quantization of a model that is larger than the memory it is given: time, rate and peak memory.

A float16 transformer of 3 billion random weights is written to disk as an ONNX graph with external data. Fresh
processes then load it, apply `quantize-weights` (round to nearest, INT4) and save the result. Peak memory is VmHWM of
the whole process, which counts mapped pages. The rate is in processor time of one core, without the disk: for us of
the rounding itself (fit, round and pack), for the peer of its one call that does this. It counts the weights that a
tool quantized, since the peer leaves tables and heads tied to them alone. The whole way is timed too. One source and
one result are on disk at a time.

The peer, `MatMulNBitsQuantizer` of ONNX Runtime, does the same work in a process of its own: on this model with the
same 2 GiB, and on a model that it can hold, without a limit.

Run `python -m benchmarks.large_weights`; results also go to build/bench/large_weights.json.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from rich.console import Console
from rich.table import Table

from edgesmith.mapped import WeightFile
from edgesmith.model import Model, Provenance
from edgesmith.task import Task

BUILD = Path("build/bench")
MEMORY_GOAL_BYTES = 2 * 2**30
ROUNDING_GOAL, CLUSTERING_GOAL = 150e6, 20e6
"""Values per second on one core."""

WIDTH, INNER, VOCABULARY = 3072, 8192, 128_256
LAYERS, PEER_LAYERS = 24, 4
"""With 24 layers 3.1 billion weights; the table of tokens, shared with the head, has 394 million of them."""
POOL = 1 << 24
"""Weights are cut from this many normal numbers at random places, because drawing 3 billion takes minutes."""


def write_model(directory: Path, layers: int) -> int:
    """Write a decoder with `layers` layers of random float16 weights; return the number of weights."""
    source = ir.Value(name="tokens", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "length"]))
    scratch = directory / "scratch"
    scratch.mkdir()
    decoder = _Decoder(scratch)
    table = decoder.weight("table", VOCABULARY, WIDTH)
    value = decoder.add("Gather", table, source)
    for layer in range(layers):
        query, key, values = (decoder.product(value, f"{layer}.{name}", WIDTH, WIDTH) for name in "qkv")
        mixed = decoder.add("Add", decoder.add("Mul", decoder.add("Sigmoid", query), key), values)
        value = decoder.add("Add", value, decoder.product(mixed, f"{layer}.o", WIDTH, WIDTH))
        gate, up = (decoder.product(value, f"{layer}.{name}", WIDTH, INNER) for name in ("gate", "up"))
        inner = decoder.add("Mul", decoder.add("Sigmoid", gate), up)
        value = decoder.add("Add", value, decoder.product(inner, f"{layer}.down", INNER, WIDTH))
    logits = decoder.add("MatMul", value, decoder.add("Transpose", table))
    logits.type, logits.shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(["batch", "length", VOCABULARY])
    graph = ir.Graph(
        [source], [logits], nodes=decoder.nodes, initializers=decoder.weights, opset_imports={"": 20}, name="decoder"
    )
    Model(ir.Model(graph, ir_version=10), Task(), Provenance("random", "benchmark", "0")).save(
        directory / "model", external_data=True
    )
    shutil.rmtree(scratch)
    return decoder.count


class _Decoder:
    """Collects nodes and weights; weights go to a file as they are made."""

    def __init__(self, directory: Path) -> None:
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.count = 0
        self._random = np.random.default_rng(0)
        self._pool = (self._random.standard_normal(POOL, dtype=np.float32) * 0.02).astype(np.float16)
        self._file = WeightFile(directory)

    def weight(self, name: str, *shape: int) -> ir.Value:
        size = int(np.prod(shape))
        values = np.empty(size, np.float16)
        for start in range(0, size, POOL):
            piece = values[start : start + POOL]
            piece[:] = np.roll(self._pool, int(self._random.integers(POOL)))[: piece.size]
        tensor = self._file.keep(ir.tensor(values.reshape(shape), name=name))
        self.count += size
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype))
        self.weights.append(value)
        return value

    def product(self, value: ir.Value, name: str, inputs: int, outputs: int) -> ir.Value:
        return self.add("MatMul", value, self.weight(name, inputs, outputs))

    def add(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.Node("", op_type, inputs, name=f"{op_type}_{len(self.nodes)}")
        node.outputs[0].name = f"value_{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]


def quantize_here(source: Path, result: Path, block_size: int) -> dict[str, float]:
    """Load, quantize and save with Edgesmith in this process, which does nothing else; return its numbers."""
    from edgesmith.host.context import Context
    from edgesmith_onnxruntime.cpu import DIALECT
    from edgesmith_quantization import quantize_weights
    from edgesmith_quantization.forms import weight_form
    from edgesmith_quantization.options.weights import QuantizeWeightsOptions

    options = QuantizeWeightsOptions.model_validate({"bits": 4, "block_size": block_size, "rounding": "nearest"})
    seconds = {"load": 0.0, "apply": 0.0, "save": 0.0, "rounding": 0.0}
    work = (_counted(quantize_weights, "round_blocks", seconds), _counted(weight_form, "pack_codes", seconds))
    with tempfile.TemporaryDirectory(dir=result.parent) as scratch:
        with _timed(seconds, "load"):
            model = Model.load(source)
        with _timed(seconds, "apply"), work[0], work[1]:
            context = Context(options=options, dialect=DIALECT, scratch=Path(scratch))
            quantized = quantize_weights.QuantizeWeights().apply(model, context)
        with _timed(seconds, "save"):
            quantized.save(result)
    peak = peak_bytes()
    held = [(name, value.const_value) for name, value in quantized.graph.initializers.items()]
    codes = sum(tensor.size for name, tensor in held if tensor is not None and name.endswith("_quantized"))
    return seconds | {"peak_bytes": peak, "quantized": codes}


def quantize_with_peer(source: Path, result: Path, block_size: int) -> dict[str, float]:
    """Do the same with ONNX Runtime's quantizer."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    seconds = {"load": 0.0, "apply": 0.0, "save": 0.0, "rounding": 0.0}
    with _timed(seconds, "load"):
        model = onnx.load(source / "model.onnx")
    with _timed(seconds, "apply"):
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=True)
        quantizer = MatMulNBitsQuantizer(model, algo_config=config)
        started = time.process_time()
        quantizer.process()
        seconds["rounding"] = time.process_time() - started
    with _timed(seconds, "save"):
        result.mkdir()
        quantizer.model.save_model_to_file(str(result / "model.onnx"), use_external_data_format=True)
    products = [node for node in quantizer.model.model.graph.node if node.op_type == "MatMulNBits"]
    sizes = [{attribute.name: attribute.i for attribute in node.attribute} for node in products]
    return seconds | {"peak_bytes": peak_bytes(), "quantized": sum(size["N"] * size["K"] for size in sizes)}


def clustering_rate() -> float:
    """Return how many values per second the split's clustering takes on one core, three clusters per row."""
    from edgesmith_quantization.arithmetic.clustering import optimal_edges

    rows = np.random.default_rng(0).standard_normal((4096, 4096), dtype=np.float32)
    started = time.process_time()
    optimal_edges(rows, 3)
    return rows.size / (time.process_time() - started)


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far, mapped pages included."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started


@contextmanager
def _counted(module: Any, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the processor time of a function of `module` to the seconds of rounding while the block runs."""
    function = getattr(module, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        result = function(*arguments, **options)
        seconds["rounding"] += time.process_time() - started
        return result

    setattr(module, name, counted)
    yield
    setattr(module, name, function)


def run_child(tool: str, source: Path, result: Path, block_size: int, limit_bytes: int | None) -> dict[str, Any]:
    """Run one tool in a process of its own, on one thread; return its numbers, or how it failed."""
    command = [sys.executable, "-m", "benchmarks.large_weights", "--child", tool, str(source), str(result)]
    limit = _limited(limit_bytes) if limit_bytes else None
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, str(block_size)], capture_output=True, text=True, check=False, preexec_fn=limit, env=environment
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        return {"failure": last[:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _limited(limit_bytes: int) -> Callable[[], None]:
    # Only data counts, as a machine counts it that has so much memory: mapped files may be larger.
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def run_cases(layers: int, cases: Sequence[tuple[str, int, int | None]]) -> list[dict[str, Any]]:
    """Make a model, run each case (tool, block size, limit in bytes) on it, delete everything; return the numbers."""
    found = []
    with tempfile.TemporaryDirectory(prefix="edgesmith-bench-", dir=BUILD) as folder:
        directory = Path(folder)
        count = write_model(directory, layers)
        for tool, block_size, limit_bytes in cases:
            result = directory / "result"
            case = {"tool": tool, "weights": count, "block_size": block_size, "limit_bytes": limit_bytes}
            case |= run_child(tool, directory / "model", result, block_size, limit_bytes)
            case["result_bytes"] = sum(path.stat().st_size for path in result.rglob("*") if path.is_file())
            found.append(case)
            shutil.rmtree(result, ignore_errors=True)
    return found


def show(cases: list[dict[str, Any]], clustering: float) -> bool:
    """Print all numbers and return whether the goals are reached."""
    table = Table("tool", "weights", "block", "limit", "load s", "apply s", "save s", "quantized", "M/s", "peak GiB")
    for case in cases:
        limit = f"{case['limit_bytes'] / 2**30:.0f} GiB" if case["limit_bytes"] else "none"
        row = [case["tool"], f"{case['weights'] / 1e9:.2f} G", str(case["block_size"]), limit]
        if "failure" in case:
            table.add_row(*row, f"failed: {case['failure']}")
            continue
        row += [f"{case[name]:.1f}" for name in ("load", "apply", "save")]
        row += [f"{case['quantized'] / 1e9:.2f} G", f"{case['quantized'] / case['rounding'] / 1e6:.0f}"]
        table.add_row(*row, f"{case['peak_bytes'] / 2**30:.2f}")
    console = Console(width=140)
    console.print(table)
    console.print(f"Clustering into 3: {clustering / 1e6:.0f} million values per second on one core.")
    ours = [case for case in cases if case["tool"] == "edgesmith"]
    return clustering >= CLUSTERING_GOAL and all(
        "failure" not in case
        and case["peak_bytes"] < MEMORY_GOAL_BYTES
        and case["quantized"] / case["rounding"] >= ROUNDING_GOAL
        for case in ours
    )


def main() -> int:
    """Run all cases; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=LAYERS, help="layers of the large model, 113 million weights each"
    )
    parser.add_argument("--child", nargs=4, metavar=("TOOL", "SOURCE", "RESULT", "BLOCK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        tool, source, result, block_size = arguments.child
        quantize = quantize_here if tool == "edgesmith" else quantize_with_peer
        sys.stdout.write(json.dumps(quantize(Path(source), Path(result), int(block_size))) + "\n")
        return 0
    BUILD.mkdir(parents=True, exist_ok=True)
    large = [("edgesmith", 32, MEMORY_GOAL_BYTES), ("edgesmith", 128, MEMORY_GOAL_BYTES)]
    large.append(("onnxruntime", 32, MEMORY_GOAL_BYTES))
    cases = run_cases(arguments.layers, large)
    cases += run_cases(min(PEER_LAYERS, arguments.layers), [("onnxruntime", 32, None), ("edgesmith", 32, None)])
    clustering = clustering_rate()
    reached = show(cases, clustering)
    (BUILD / "large_weights.json").write_text(json.dumps({"cases": cases, "clustering": clustering}, indent=2))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
