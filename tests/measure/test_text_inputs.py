"""Inputs that are texts are measured as others are, and nothing is pickled."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgesmith.device.worker.archive import ArrayArchive, read_batch
from edgesmith.measure.memory import measure_in_child
from edgesmith.measure.runner import CPU_PROVIDER, MemoryPlan

TEXTS = {"x": np.array(["short", "a längerer text", ""], dtype=object)}


def test_the_memory_of_a_model_that_reads_texts_is_measured(tmp_path):
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])]
    model = helper.make_model(
        helper.make_graph([node], "texts", inputs, outputs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.save(model, tmp_path / "model.onnx")
    found = measure_in_child(tmp_path / "model.onnx", TEXTS, MemoryPlan(), threads=1, provider=CPU_PROVIDER)
    assert found.peak_bytes >= found.baseline_bytes > 0


def test_texts_go_to_a_device_and_come_back(tmp_path):
    with ArrayArchive(tmp_path / "inputs.npz") as archive:
        archive.add(0, TEXTS)
    with np.load(tmp_path / "inputs.npz", allow_pickle=False) as stored:
        assert read_batch(stored, 0, ["x"])["x"].tolist() == TEXTS["x"].tolist()
