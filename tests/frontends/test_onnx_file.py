"""ONNX files and saved Models as sources."""

from pathlib import Path

import numpy as np
import pytest

from edgesmith import serialization
from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.frontends.onnx_file import OnnxFrontend
from edgesmith.model import Model
from edgesmith.serialization import to_bytes, write_onnx

FRONTEND = OnnxFrontend()


def test_a_file_is_read_and_normalized(tiny_cnn: Model, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(tiny_cnn.ir, path)
    model = FRONTEND.load(path)
    assert to_bytes(model.ir) == to_bytes(tiny_cnn.ir)
    assert model.provenance.source == str(path)
    assert model.provenance.digest == FRONTEND.fingerprint(path)
    image = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    expected = ReferenceSession(tiny_cnn.ir).run({"image": image})["logits"]
    np.testing.assert_array_equal(ReferenceSession(path).run({"image": image})["logits"], expected)


def test_a_saved_model_keeps_its_task_and_history(tiny_bert: Model, tmp_path: Path) -> None:
    tiny_bert.save(tmp_path / "m")
    model = FRONTEND.load(tmp_path / "m")
    assert model.digest() == tiny_bert.digest()
    assert model.provenance == tiny_bert.provenance


def test_what_is_accepted(tiny_cnn: Model, tmp_path: Path) -> None:
    tiny_cnn.save(tmp_path / "saved")
    assert FRONTEND.accepts("missing.onnx")
    assert FRONTEND.accepts(tmp_path / "saved")
    for source in (tmp_path, "bert-base-uncased", 3, None):
        assert not FRONTEND.accepts(source)


def test_missing_files_are_one_clear_error() -> None:
    for ask in (FRONTEND.load, FRONTEND.fingerprint):
        with pytest.raises(ModelError, match=r"`missing\.onnx` does not exist"):
            ask("missing.onnx")


def test_the_fingerprint_covers_external_data(tiny_cnn: Model, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    write_onnx(tiny_cnn.ir, path, external_data=True)
    before = FRONTEND.fingerprint(path)
    assert FRONTEND.load(path).provenance.digest == before
    data = bytearray((tmp_path / "net.onnx.data").read_bytes())
    data[0] ^= 1
    (tmp_path / "net.onnx.data").write_bytes(data)
    assert FRONTEND.fingerprint(path) != before


def test_a_file_is_parsed_once_whatever_its_weights_lie_in(
    tiny_cnn: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    original = serialization._parse
    monkeypatch.setattr(serialization, "_parse", lambda path: parsed.append(path) or original(path))
    for external_data in (False, True):
        path = tmp_path / f"{external_data}.onnx"
        write_onnx(tiny_cnn.ir, path, external_data=external_data)
        FRONTEND.load(path)
    assert parsed == [tmp_path / "False.onnx", tmp_path / "True.onnx"]
