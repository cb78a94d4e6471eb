"""Weight-only quantization streams: whatever the size of the model, it needs the memory of about one weight."""

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.host.context import Context
from edgesmith.mapped import is_unchangeable
from edgesmith.model import Model, Provenance
from edgesmith.task import Task
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights

MIB = 2**20
LAYERS, WIDTH = 32, 1024


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of products with 64 MiB of float16 weights, 2 MiB each, in external data."""
    rng = np.random.default_rng(0)
    half = ir.TensorType(ir.DataType.FLOAT16)
    value = ir.Value(name="x", type=half, shape=ir.Shape(["n", WIDTH]))
    inputs, nodes, weights = [value], [], []
    for layer in range(LAYERS):
        tensor = ir.tensor(rng.normal(0, 0.02, (WIDTH, WIDTH)).astype(np.float16), name=f"w{layer}")
        weights.append(ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=half))
        nodes.append(ir.Node("", "MatMul", [value, weights[-1]], name=f"product{layer}"))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = f"y{layer}", half, ir.Shape(["n", WIDTH])
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="chain")
    model = Model(ir.Model(graph, ir_version=10), Task(), Provenance("made", "test", "0"))
    return model.save(tmp_path_factory.mktemp("wide") / "m", external_data=True)


def mapped_mib() -> float:
    """Mapped pages of files that are in memory now."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssFile"))


@pytest.mark.parametrize("block_size", [32, None])
def test_memory_is_that_of_a_few_weights_whatever_the_size_of_the_model(
    saved: Path, tmp_path: Path, block_size: int | None
) -> None:
    options = QuantizeWeightsOptions(rounding="nearest", block_size=block_size)
    method, context = QuantizeWeights(), Context(options=options, dialect=DIALECT, scratch=tmp_path)
    # What the first run imports and caches is no part of the weights.
    method.apply(Model.load(saved), context)
    pages = mapped_mib()
    tracemalloc.start()
    quantized = method.apply(Model.load(saved), context)
    quantized.digest()
    quantized.save(tmp_path / "result", external_data=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of one weight: float32 tiles of 0.5 MiB, a few at a time, codes of 1 MiB, packed codes of 0.5 MiB. The other 31,
    # of 2 MiB before and 0.5 after, are on disk.
    assert peak < 8 * MIB
    assert mapped_mib() < pages + 8
    codes = [value.const_value for value in quantized.graph.initializers.values() if value.const_value is not None]
    large = [tensor for tensor in codes if tensor.nbytes > MIB / 8]
    assert len(large) >= LAYERS
    assert all(map(is_unchangeable, large))


def test_the_result_is_the_same_from_disk_and_from_memory(saved: Path, tmp_path: Path) -> None:
    options = QuantizeWeightsOptions(rounding="nearest", block_size=32)
    context = Context(options=options, dialect=DIALECT, scratch=tmp_path)
    mapped = Model.load(saved)
    inner = mapped.clone()
    for value in inner.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    found = [QuantizeWeights().apply(model, context) for model in (mapped, inner)]
    assert found[0].digest() == found[1].digest() != mapped.digest()
