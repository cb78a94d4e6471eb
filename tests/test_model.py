"""A Model survives saving and loading as a whole, and a directory from a stranger is read with suspicion."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import ModelError, OutputError
from edgesmith.model import Model, Provenance
from edgesmith.serialization import to_bytes
from edgesmith.task import Task
from edgesmith_calibration.preprocessing import TextPreprocessing


@pytest.fixture
def model(tiny_bert: Model) -> Model:
    task = Task(kind="text-classification", labels=("schlecht", "gut", "ö"), preprocessing=TextPreprocessing())
    return replace(tiny_bert, task=task, assets={"tokenizer.json": b"{}", "vocab.txt": bytes(range(256))})


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.parametrize("external_data", [None, True])
def test_saving_and_loading_keeps_everything(model: Model, tmp_path: Path, external_data: bool | None) -> None:
    model.save(tmp_path / "m", external_data=external_data)
    again = Model.load(tmp_path / "m")
    assert (again.task, again.provenance, dict(again.assets)) == (model.task, model.provenance, dict(model.assets))
    assert to_bytes(again.ir) == to_bytes(model.ir)
    assert again.digest() == model.digest()
    assert (tmp_path / "m" / "model.onnx.data").exists() == bool(external_data)


def test_two_saves_are_byte_identical(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "one")
    Model.load(tmp_path / "one").save(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_mapped_model_can_be_saved_over_itself(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m", external_data=True)
    mapped = Model.load(tmp_path / "m")
    smaller = mapped.clone()
    for name in ("classifier.weight", "classifier.bias"):
        value = smaller.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * 2, name=name)
    smaller.save(tmp_path / "m", external_data=True)
    assert Model.load(tmp_path / "m").digest() == smaller.digest() != model.digest()
    # What was mapped from the replaced file still reads the old content.
    assert mapped.digest() == model.digest()


def test_the_digest_covers_task_and_assets_and_not_provenance(model: Model) -> None:
    digests = {
        model.digest(),
        replace(model, task=Task()).digest(),
        replace(model, assets={"tokenizer.json": b"{}"}).digest(),
        replace(model, assets={**model.assets, "tokenizer.json": b"{ }"}).digest(),
    }
    assert len(digests) == 4
    assert replace(model, provenance=Provenance("a", "b", "c")).digest() == model.digest()


def test_a_clone_is_independent(model: Model) -> None:
    before = model.digest()
    clone = model.clone()
    clone.graph.initializers["classifier.bias"].const_value = ir.tensor(np.zeros(3, np.float32))
    clone.graph.remove(next(iter(clone.graph)), safe=False)
    assert model.digest() == before


def test_saving_replaces_only_what_was_saved_before(model: Model, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(OutputError, match="not empty"):
        model.save(tmp_path)
    assert files(tmp_path) == {"notes.txt": b"keep me"}
    model.save(tmp_path / "m")
    replace(model, assets={}).save(tmp_path / "m")
    assert "assets/vocab.txt" not in files(tmp_path / "m")


def test_a_failing_save_leaves_the_earlier_model(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model.save(tmp_path / "m")
    before = files(tmp_path)

    def full(*arguments: object, **options: object) -> None:
        with Path("/dev/full").open("wb") as device:
            device.write(b"x" * 100_000)

    monkeypatch.setattr("edgesmith.model.write_onnx", full)
    with pytest.raises(OutputError, match="the disk is full"):
        replace(model, assets={}).save(tmp_path / "m")
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", "", ".", "..", ".hidden", "nul\0"])
def test_asset_names_cannot_leave_the_directory(model: Model, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match="cannot be the name of an asset"):
        replace(model, assets={name: b""}).save(tmp_path / "m")
    assert files(tmp_path) == {}
    model.save(tmp_path / "m")
    metadata = json.loads((tmp_path / "m" / "edgesmith.json").read_text())
    metadata["assets"] = [name]
    (tmp_path / "m" / "edgesmith.json").write_text(json.dumps(metadata))
    with pytest.raises(ModelError, match="cannot be the name of an asset"):
        Model.load(tmp_path / "m")


def test_an_asset_that_is_a_link_is_refused(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "m" / "assets" / "vocab.txt").unlink()
    (tmp_path / "m" / "assets" / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"vocab\.txt.*not a regular file"):
        Model.load(tmp_path / "m")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 2}',
        '{"format": 1}',
        '{"format": 1, "task": 3, "provenance": {}, "assets": []}',
    ],
)
def test_broken_metadata_is_refused(model: Model, tmp_path: Path, content: str) -> None:
    model.save(tmp_path / "m")
    (tmp_path / "m" / "edgesmith.json").write_text(content)
    with pytest.raises(ModelError, match=r"edgesmith\.json"):
        Model.load(tmp_path / "m")


def test_missing_parts_are_named(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    for part, said in (("model.onnx", "does not exist"), ("edgesmith.json", "cannot be read")):
        shutil.copytree(tmp_path / "m", tmp_path / part)
        (tmp_path / part / part).unlink()
        with pytest.raises(ModelError, match=said):
            Model.load(tmp_path / part)


def test_a_plain_onnx_file_loads_as_it_is(model: Model, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    plain = Model.load(tmp_path / "m" / "model.onnx")
    assert plain.task == Task()
    assert to_bytes(plain.ir) == to_bytes(model.ir)
