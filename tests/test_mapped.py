"""Weights on disk: the bytes are right, memory comes back, and walks over a model need the memory of one weight."""

import gc
import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith import digest, mapped
from edgesmith.digest import content_hash
from edgesmith.errors import OutputError
from edgesmith.mapped import WeightFile, is_unchangeable, map_file, release, release_array, stored_pieces
from edgesmith.model import Model, Provenance
from edgesmith.task import Task

MIB = 2**20


def resident_mib() -> float:
    """Mapped pages of files that are in memory now."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssFile"))


def wide_model(layers: int = 16, width: int = 1024) -> Model:
    """A chain of products with float32 weights of 4 MiB each, 64 MiB in all."""
    rng = np.random.default_rng(0)
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", width]))
    inputs, nodes, weights = [value], [], []
    for layer in range(layers):
        tensor = ir.tensor(rng.normal(0, 0.02, (width, width)).astype(np.float32), name=f"w{layer}")
        weights.append(ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=value.type))
        nodes.append(ir.Node("", "MatMul", [value, weights[-1]], name=f"product{layer}"))
        value = nodes[-1].outputs[0]
        value.name, value.type, value.shape = f"y{layer}", inputs[0].type, ir.Shape(["n", width])
    graph = ir.Graph(inputs, [value], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="chain")
    return Model(ir.Model(graph, ir_version=10), Task(), Provenance("made", "test", "0"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_model().save(tmp_path_factory.mktemp("wide") / "m", external_data=True)


@pytest.mark.parametrize(
    "dtype", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "INT4", "UINT4", "INT2", "FLOAT8E4M3FN", "BOOL"]
)
@given(shape=st.lists(st.integers(0, 24), max_size=3).map(tuple), piece=st.sampled_from([100, 4096, 1 << 24]))
@settings(max_examples=15, deadline=None)
def test_kept_weights_are_equal_and_so_are_their_bytes(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, shape: tuple[int, ...], piece: int
) -> None:
    kind = ir.DataType[dtype]
    tensor = ir.Tensor(np.random.default_rng(0).integers(0, 2, shape).astype(kind.numpy()), kind, name="w")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapped, "_PIECE_BYTES", piece)
        patch.setattr(mapped, "_SMALL_BYTES", 0)
        patch.setattr(mapped, "_SEGMENT_BYTES", 9_000)
        file = WeightFile(tmp_path_factory.mktemp("kept"))
        kept = [file.keep(tensor) for _ in range(3)]
        assert b"".join(each.tobytes() for each in stored_pieces(tensor)) == tensor.tobytes()
    for each in kept:
        assert (each.dtype, each.shape, each.name) == (tensor.dtype, tensor.shape, "w")
        assert each.tobytes() == tensor.tobytes()
        np.testing.assert_array_equal(each.numpy(), tensor.numpy())
        assert content_hash(each) == content_hash(tensor) == hashlib.sha256(tensor.tobytes()).digest()
        assert is_unchangeable(each) == (tensor.nbytes > 0)


def test_weights_outlive_their_file_and_small_ones_stay_in_memory(tmp_path: Path) -> None:
    large, small = (ir.tensor(np.arange(size, dtype=np.float32)) for size in (1 << 16, 10))
    file = WeightFile(tmp_path)
    kept = file.keep(large)
    assert file.keep(small) is small
    for path in tmp_path.iterdir():
        path.unlink()
    release(kept)
    np.testing.assert_array_equal(kept.numpy(), large.numpy())
    with pytest.raises(ValueError, match="read-only"):
        kept.numpy()[0] = 1


def test_two_files_in_one_directory_do_not_meet(tmp_path: Path) -> None:
    tensors = [ir.tensor(np.full(1 << 16, number, np.float32)) for number in range(2)]
    kept = [WeightFile(tmp_path).keep(tensor) for tensor in tensors]
    for tensor, found in zip(tensors, kept, strict=True):
        np.testing.assert_array_equal(found.numpy(), tensor.numpy())


def test_a_directory_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        WeightFile(tmp_path / "no such place").keep(ir.tensor(np.zeros(1 << 16, np.float32)))


def test_released_pages_leave_memory_and_come_back_with_the_same_content(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    content = np.random.default_rng(0).integers(0, 256, 24 * MIB, dtype=np.uint8)
    content.tofile(path)
    array = map_file(path)
    before = resident_mib()
    assert int(array.sum(dtype=np.int64)) == int(content.sum(dtype=np.int64))
    assert resident_mib() > before + 20
    inner = array[100:-100].view(np.float16).reshape(-1, 4)[1:, 1:3]
    release_array(inner)
    assert resident_mib() < before + 2
    np.testing.assert_array_equal(array, content)


def test_releasing_memory_that_is_not_mapped_changes_nothing() -> None:
    array = np.arange(10)
    release_array(array)
    release_array(array[:0])
    release(ir.tensor(["a", "b"]))
    np.testing.assert_array_equal(array, np.arange(10))


def test_loading_hashing_and_saving_a_mapped_model_need_one_weight_of_memory(saved: Path, tmp_path: Path) -> None:
    def pages_after(work: object) -> float:
        before = resident_mib()
        work()  # type: ignore[operator]
        return resident_mib() - before

    tracemalloc.start()
    model = Model.load(saved)
    assert pages_after(model.digest) < 4
    assert pages_after(lambda: model.save(tmp_path / "again", external_data=True)) < 4
    # The model has 64 MiB, its largest weight 4; a copy of two of them would be seen.
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()
    assert Model.load(tmp_path / "again").digest() == model.digest()


def test_the_hash_of_a_mapped_weight_is_taken_once_and_that_of_a_writable_one_each_time(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str | None] = []

    def counted(tensor: ir.TensorProtocol) -> object:
        read.append(tensor.name)
        return stored_pieces(tensor)

    monkeypatch.setattr(digest, "stored_pieces", counted)
    model = Model.load(saved)
    first = model.digest()
    assert len(read) == 16
    assert model.digest() == model.clone().digest() == first
    assert len(read) == 16, "a mapped weight was read again"
    changed = wide_model(layers=1)
    before = changed.digest()
    weight = changed.graph.initializers["w0"].const_value
    assert weight is not None
    weight.numpy()[0, 0] += 1
    assert changed.digest() != before, "a write to a weight in memory went unseen"


def test_files_of_killed_processes_are_deleted(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    orphan, living = (tmp_path / f"edgesmith-weights-{pid}-abc" for pid in (ended.pid, os.getppid()))
    for path in (orphan, living, tmp_path / "edgesmith-weights-other"):
        path.touch()
    kept = WeightFile().keep(ir.tensor(np.zeros(1 << 16, np.float32)))
    assert kept.size == 1 << 16
    assert not orphan.exists()
    assert living.exists()
    assert (tmp_path / "edgesmith-weights-other").exists()


def test_files_of_its_own_go_with_the_last_tensor(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = WeightFile().keep(ir.tensor(np.arange(1 << 16, dtype=np.float32)))
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(kept.numpy(), np.arange(1 << 16))
    del kept
    gc.collect()
    assert list(tmp_path.iterdir()) == []
