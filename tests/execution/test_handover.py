"""Large graphs reach ONNX Runtime through files: linked where they lie in one, copied where not, never wrong."""

import os
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.execution import handover
from edgesmith.execution.handover import obstacle_to_running, write_linked
from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.normalize import normalize_with_remarks
from edgesmith.host.postconditions import Promise, check_result
from edgesmith.mapped import WeightFile
from edgesmith.model import Model
from edgesmith.serialization import read_onnx, write_onnx
from edgesmith.testing import tiny_mlp

WIDTH = 64


def chain(*weights: ir.TensorProtocol) -> ir.Model:
    """x times one weight after the other; those of other types than float32 are cast first."""
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", WIDTH]))
    inputs, nodes, initializers = [value], [], []
    for index, tensor in enumerate(weights):
        weight = ir.Value(name=f"w{index}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        initializers.append(weight)
        nodes.append(ir.Node("", "Cast", [weight], {"to": ir.AttrInt64("to", int(ir.DataType.FLOAT))}))
        nodes[-1].outputs[0].name = f"cast{index}"
        nodes.append(ir.Node("", "MatMul", [value, nodes[-1].outputs[0]]))
        value = nodes[-1].outputs[0]
        value.name = f"y{index}"
    value.type, value.shape = inputs[0].type, ir.Shape(["n", WIDTH])
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=initializers, opset_imports={"": 21}, name="chain")
    return ir.Model(graph, ir_version=10)


def numbers(dtype: ir.DataType = ir.DataType.FLOAT, seed: int = 0) -> ir.TensorProtocol:
    values = np.random.default_rng(seed).integers(-8, 8, (WIDTH, WIDTH))
    return ir.Tensor(values.astype(dtype.numpy()), dtype)


def outputs_of(model: ir.Model | Path) -> np.ndarray:
    return ReferenceSession(model).run({"x": np.eye(3, WIDTH, dtype=np.float32)})[
        ReferenceSession(model).output_names[0]
    ]


@pytest.fixture
def mapped(tmp_path: Path) -> ir.Model:
    """A graph whose weights of several types lie in one mapped file, behind each other without gaps."""
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8, ir.DataType.INT4)
    write_onnx(
        chain(*(numbers(kind, seed) for seed, kind in enumerate(kinds))), tmp_path / "m.onnx", external_data=True
    )
    return read_onnx(tmp_path / "m.onnx")


def test_weights_in_a_file_are_linked_and_others_copied(mapped: ir.Model, tmp_path: Path) -> None:
    extra = mapped.graph.initializers["w0"]
    extra.const_value = numbers(seed=9)
    expected = outputs_of(mapped)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = write_linked(mapped, folder)
    np.testing.assert_array_equal(outputs_of(path), expected)
    assert (folder / "weights-0").samefile(tmp_path / "m.onnx.data")
    assert (folder / "model.data").stat().st_size == numbers().nbytes
    assert path.stat().st_size < 4096
    assert extra.const_value.tobytes() == numbers(seed=9).tobytes(), "the graph was changed"


@pytest.mark.parametrize("fate", ["deleted", "replaced", "no links"])
def test_weights_whose_file_cannot_be_linked_are_copied(
    fate: str, mapped: ir.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs_of(mapped)
    data = tmp_path / "m.onnx.data"
    if fate == "no links":

        def refuse(*_: object) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "link", refuse)
    else:
        other = tmp_path / "other"
        other.write_bytes(bytes(data.stat().st_size))
        other.replace(data) if fate == "replaced" else data.unlink()
    folder = tmp_path / "folder"
    folder.mkdir()
    np.testing.assert_array_equal(outputs_of(write_linked(mapped, folder)), expected)
    assert (folder / "model.data").stat().st_size > 0


def test_sessions_over_linked_weights_outlive_their_folder(mapped: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = outputs_of(mapped)
    monkeypatch.setattr("edgesmith.execution.reference.INLINE_BYTES", 0)
    for prepack in (True, False):
        session = ReferenceSession(mapped, prepack=prepack)
        found = session.run({"x": np.eye(3, WIDTH, dtype=np.float32)})
        np.testing.assert_allclose(found[session.output_names[0]], expected, rtol=1e-6)


def test_weights_in_scratch_files_are_linked_too(tmp_path: Path) -> None:
    large = ir.Tensor(np.random.default_rng(0).normal(size=(WIDTH, 1024)).astype(np.float32))
    model = chain(WeightFile(tmp_path).keep(large))
    (tmp_path / "folder").mkdir()
    write_linked(model, tmp_path / "folder")
    assert (tmp_path / "folder" / "model.data").stat().st_size == 0


@pytest.mark.parametrize(
    ("free", "limit", "fits"),
    [(65536, "max", True), (65535, "max", False), (10**9, "70000", True), (10**9, "60000", False)],
)
def test_the_limit_is_half_of_the_free_memory_with_every_weight_as_float32(
    free: int, limit: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("_CGROUP_LIMIT", limit), ("_CGROUP_USE", "0")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(handover, name, tmp_path / name)
    monkeypatch.setattr(handover.psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    # Two weights of 64 x 64 in 8 and 4 bits take 32 KiB as float32.
    reason = obstacle_to_running(chain(numbers(ir.DataType.INT8), numbers(ir.DataType.INT4)))
    assert (reason == "") == fits
    assert fits or "half of the free memory" in reason


def test_a_rewrite_of_a_model_too_large_to_run_is_loaded_and_the_report_says_that_it_was_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tiny_mlp()
    ran: list[object] = []
    monkeypatch.setattr(ReferenceSession, "run", lambda self, _: ran.append(self))
    monkeypatch.setattr(handover, "free_bytes", lambda: 100)
    proof = check_result(before, before.clone(), Promise("method m"), {})
    assert proof.relative_error is None
    assert "not compared" in proof.remarks[0]
    assert not ran


def test_a_model_too_large_to_run_must_still_load(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tiny_mlp()
    after: Model = before.clone()
    node = next(iter(after.graph))
    node.domain, node.op_type = "com.microsoft", "NoSuchOperator"
    after.ir.opset_imports["com.microsoft"] = 1
    monkeypatch.setattr(handover, "free_bytes", lambda: 100)
    with pytest.raises(Exception, match="NoSuchOperator"):
        check_result(before, after, Promise("method m"), {})


def test_a_source_too_large_to_run_is_cleaned_without_proof_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handover, "free_bytes", lambda: 100)
    ran: list[object] = []
    monkeypatch.setattr(ReferenceSession, "run", lambda self, _: ran.append(self))
    normalized = normalize_with_remarks(tiny_mlp().ir)
    assert "too large" in normalized.remarks[0]
    assert not ran


def test_small_weights_of_an_external_file_keep_their_values_beside_large_ones(tmp_path: Path) -> None:
    # Both files are called model.data: a small tensor left as a reference would read the numbers of another.
    small = ir.Tensor(np.eye(WIDTH, 4, dtype=np.float32)[:, :4].copy())
    model = chain(numbers(seed=1), small)
    model.graph.outputs[0].shape = ir.Shape(["n", 4])
    ir.save(model, tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    inputs = {"x": np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)}
    folder = tmp_path / "linked"
    folder.mkdir()
    loaded = ir.load(tmp_path / "model.onnx")
    found = ReferenceSession(write_linked(loaded, folder)).run(inputs)
    expected = ReferenceSession(model).run(inputs)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
