"""Sizes of files and weights, and the description of the machine."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from measure_models import dense_model

from edgesmith.errors import MeasurementError
from edgesmith.measure.machine import describe_machine, library_versions
from edgesmith.measure.size import measure_size


def test_file_weights_and_compressed_size(tmp_path: Path):
    model = dense_model(tmp_path / "model.onnx", depth=3, width=64)
    size = measure_size(model, compressed=True)
    assert size.file_bytes == model.stat().st_size
    assert size.weight_bytes == 3 * 64 * 64 * 4
    assert size.weight_bytes < size.file_bytes
    assert 0 < size.compressed_bytes < size.file_bytes
    assert measure_size(model).compressed_bytes is None


def test_equal_weights_count_once(tmp_path: Path):
    model = ir.load(dense_model(tmp_path / "model.onnx", depth=2, width=64))
    first, second = model.graph.initializers.values()
    second.const_value = ir.tensor(first.const_value.numpy().copy(), name=second.name)
    ir.save(model, tmp_path / "tied.onnx")
    assert measure_size(tmp_path / "tied.onnx").weight_bytes == 64 * 64 * 4


def test_packed_four_bit_weights_count_half_a_byte(tmp_path: Path):
    model = ir.load(dense_model(tmp_path / "model.onnx", depth=1, width=64))
    (weight,) = model.graph.initializers.values()
    codes = np.arange(64 * 64, dtype=np.int8).reshape(64, 64) % 7
    weight.const_value = ir.tensor(codes, dtype=ir.DataType.INT4, name=weight.name)
    weight.dtype = ir.DataType.INT4
    ir.save(model, tmp_path / "packed.onnx")
    assert measure_size(tmp_path / "packed.onnx").weight_bytes == 64 * 64 // 2


def test_external_data_counts_and_must_be_there(tmp_path: Path):
    model = ir.load(dense_model(tmp_path / "model.onnx", depth=2, width=128))
    split = tmp_path / "split.onnx"
    ir.save(model, split, external_data="split.data")
    data = tmp_path / "split.data"
    assert measure_size(split).file_bytes == split.stat().st_size + data.stat().st_size
    data.unlink()
    with pytest.raises(MeasurementError, match=r"split\.data is missing"):
        measure_size(split)


def test_missing_model_is_an_error(tmp_path: Path):
    with pytest.raises(MeasurementError, match="is missing"):
        measure_size(tmp_path / "none.onnx")


def test_machine_is_described_with_facts_only():
    facts = describe_machine()
    assert facts["processor"] and facts["memory_bytes"] > 2**28
    assert 1 <= facts["usable_cores"] <= facts["logical_cores"]
    assert all(facts.values())
    assert json.loads(json.dumps(facts)) == facts


def test_versions_are_read_without_importing():
    program = (
        "import sys; from edgesmith.measure.machine import library_versions; v = library_versions();"
        "assert 'numpy' in v and 'onnxruntime' in v, v;"
        "assert not {'numpy', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert library_versions(("no-such-distribution",)) == {}
