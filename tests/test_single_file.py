"""Files that are written without a copy of their weights."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.serialization import to_bytes, write_onnx
from edgesmith.single_file import write_single_file
from small_graphs import graph, node

LARGE = 1 << 15
"""Elements of float32 that are more than 64 KiB."""


def model(*weights):
    names = [f"w{index}" for index in range(len(weights))]
    outputs = [f"y{index}" for index in range(len(weights))]
    nodes = [node("Add", ["x", name], output) for name, output in zip(names, outputs, strict=True)]
    return graph(nodes, dict(zip(names, weights, strict=True)), {"x": ["n", 1]}, outputs).ir


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([1, 100, LARGE - 1, LARGE, LARGE + 1, 3 * LARGE]), min_size=1, max_size=5))
def test_same_bytes_as_protobuf_writes(tmp_path_factory, sizes):
    found = model(*[np.arange(size, dtype=np.float32) for size in sizes])
    path = tmp_path_factory.mktemp("written") / "model.onnx"
    write_onnx(found, path)
    assert path.read_bytes() == to_bytes(found)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT4, ir.DataType.BOOL])
def test_types_of_every_width(tmp_path, dtype):
    found = model(np.ones(1, np.float32))
    shape = ir.Shape([4 * LARGE])
    content = np.random.default_rng(0).integers(0, 2, 4 * LARGE * dtype.bitwidth // 8).astype(np.uint8)
    packed = dtype.bitwidth < 8
    tensor = ir.PackedTensor(content, dtype, shape=shape) if packed else ir.Tensor(content.view(dtype.numpy()), dtype)
    found.graph.initializers["w0"].const_value = tensor
    write_onnx(found, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == to_bytes(found)
    read = ir.load(tmp_path / "model.onnx").graph.initializers["w0"].const_value
    assert read is not None
    assert read.tobytes() == tensor.tobytes()


def test_metadata_functions_and_the_model_itself_stay(tmp_path):
    found = model(np.arange(LARGE, dtype=np.float32), np.arange(LARGE, dtype=np.float32))
    found.metadata_props["author"] = "someone"
    found.graph.metadata_props["part"] = "main"
    found.graph.initializers["w0"].const_value.metadata_props["note"] = "kept"
    before = to_bytes(found)
    write_single_file(found, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == before == to_bytes(found)
