"""A small image classifier with labelled data, as files, for tests of the whole path."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4


@dataclass(frozen=True)
class Job:
    """Files of one compile."""

    folder: Path
    model: Path
    data: Path

    def arguments(self, *more: str, out: str = "artifact") -> list[str]:
        """Return the command line of a quick compile into `folder / out`."""
        words = ["compile", str(self.model), "--data", str(self.data), "--out", str(self.folder / out)]
        return [*words, "--threads", "1", *more]


def write_classifier(path: Path, *, seed: int = 0, opset: int = 17) -> None:
    """Write Conv, Relu, Conv, Relu, pooling and Gemm with random weights and a dynamic batch."""
    generator = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        scale = float(np.sqrt(2 / np.prod(shape[1:])))
        return numpy_helper.from_array(generator.normal(0, scale, shape).astype(np.float32), name)

    weights = [weight("w1", 16, 3, 3, 3), weight("w2", 32, 16, 3, 3), weight("w3", CLASSES, 32)]
    weights += [weight("b1", 16), weight("b2", 32), weight("b3", CLASSES)]
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "head", transB=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 16, 16])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "classifier", [image], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, path)


def write_data(folder: Path, model: Path, *, samples: int = 48) -> Path:
    """Write calibration and evaluation arrays whose labels are the model's own answers, and a data description."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    for role, seed in (("calibration", 1), ("evaluation", 2)):
        images = np.random.default_rng(seed).normal(0, 1, (samples, 3, 16, 16)).astype(np.float32)
        labels = session.run(None, {"image": images})[0].argmax(axis=1)
        np.savez(folder / f"{role}.npz", image=images, labels=labels)
    description = {role: {"kind": "npz", "path": f"{role}.npz"} for role in ("calibration", "evaluation")}
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(description))
    return path


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A fresh folder with a model and its data, whose store is `store` in that folder."""
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    model = tmp_path / "classifier.onnx"
    write_classifier(model)
    return Job(tmp_path, model, write_data(tmp_path, model))
