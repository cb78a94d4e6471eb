"""Exports `model.onnx` to ExecuTorch with XNNPACK, runs the file, and compares. Runs as a child process.

    python export.py DIRECTORY --samples samples.npz

The exporter prints, and holds several copies of the graph, so it gets a process of its own. Writes `model.pte`. The
last line on standard output is JSON.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.serialization import read_onnx

MODEL, FILE = "model.onnx", "model.pte"


class Positional(nn.Module):
    """A TorchGraph that takes tensors in the order of the graph's inputs and gives them in that of its outputs.

    Args:
        graph: The graph.
        names: Its input names.
    """

    def __init__(self, graph: TorchGraph, names: tuple[str, ...]) -> None:
        super().__init__()
        # Not called "graph": that name is taken in the module that torch.export gives back.
        self.network, self.names = graph, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of the graph."""
        return tuple(self.network(dict(zip(self.names, inputs, strict=True))).values())


def lower(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[bytes, dict[str, int]]:
    """Return the file, and how often each operator runs outside XNNPACK, with the calls of XNNPACK among them."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    called = (node for node in lowered.exported_program().graph_module.graph.nodes if node.op == "call_function")
    operators = Counter(_operator(node.target) for node in called)
    operators.pop("getitem", None)
    return bytes(lowered.to_executorch().buffer), dict(operators)


def _operator(target: Any) -> str:
    name = getattr(target, "__name__", None) or str(target)
    return str(name).removeprefix("aten.").partition(".")[0]


def run(file: Path, inputs: tuple[Tensor, ...]) -> list[np.ndarray]:
    """Return the outputs of a .pte file."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method("forward")
    return [value.numpy() for value in method.execute(list(inputs))]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--samples", type=Path, required=True)
    arguments = parser.parse_args()
    model = read_onnx(arguments.directory / MODEL)
    with np.load(arguments.samples) as stored:
        feed = {name: stored[name] for name in stored.files}
    inputs = tuple(torch.from_numpy(array) for array in feed.values())
    content, operators = lower(Positional(TorchGraph(model), tuple(feed)), inputs)
    file = arguments.directory / FILE
    file.write_bytes(content)
    expected = ReferenceSession(model).run(feed)
    errors = {}
    for (name, reference), actual in zip(expected.items(), run(file, inputs), strict=True):
        wide = reference.astype(np.float64)
        distance = float(np.linalg.norm(actual.astype(np.float64) - wide))
        errors[name] = distance / max(float(np.linalg.norm(wide)), 1e-30)
    facts = {"file": FILE, "bytes": len(content), "relative_errors": errors, "operators": operators}
    sys.stdout.write("\n" + json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
