"""Sizes of files, and the description of the machine."""

import json
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from measure_models import dense_model

from edgesmith.errors import MeasurementError, ModelError
from edgesmith.measure.machine import describe_machine, library_versions
from edgesmith.measure.size import measure_size


def test_a_model_file_counts_as_it_lies_on_disk(tmp_path: Path):
    model = dense_model(tmp_path / "model.onnx", depth=3, width=64)
    assert measure_size(model).file_bytes == model.stat().st_size > 3 * 64 * 64 * 4


def test_the_file_of_another_runtime_counts_whatever_it_holds(tmp_path: Path):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"not ONNX")
    assert measure_size(engine).file_bytes == 8


def test_external_data_counts_and_must_be_there(tmp_path: Path):
    model = ir.load(dense_model(tmp_path / "model.onnx", depth=2, width=128))
    split = tmp_path / "split.onnx"
    ir.save(model, split, external_data="split.data")
    data = tmp_path / "split.data"
    assert measure_size(split).file_bytes == split.stat().st_size + data.stat().st_size
    data.unlink()
    with pytest.raises(ModelError, match=r"`split\.data`, which is missing"):
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
