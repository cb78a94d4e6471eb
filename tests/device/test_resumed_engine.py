"""An engine of a try that broke is used only if it is whole and of the same files."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_fixtures import made_up_probe

from edgesmith.device.facts import Probe
from edgesmith.device.local import LocalTransport
from edgesmith.device.remote import build_engine
from edgesmith.device.transport import workspace
from edgesmith.device.validation import _send
from edgesmith.errors import DeviceError

BUILD = 'cd "$(dirname "$0")" && cat model.onnx > engine.plan && $TRTEXEC'
"""Builds what can be told apart, and is cut off where trtexec fails."""


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "device").mkdir()
    with workspace(LocalTransport(str(tmp_path / "device"), sys.executable), keep=True) as place:
        return place.directory


def visit_with(folder: Path, model: bytes, engine: bytes):
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    (folder / "build.sh").write_text(BUILD)
    files = [folder / "model.onnx", folder / "build.sh"]
    if engine:
        files.insert(0, folder / "engine.plan")
        files[0].write_bytes(engine)
    samples = SimpleNamespace(batches=[SimpleNamespace(inputs={"x": np.zeros(3)})])
    return SimpleNamespace(
        scratch=folder, samples=samples, labels={}, shipment=SimpleNamespace(files=files, entry=files[-2])
    )


def build(tmp_path, directory, model, trtexec="/bin/true", engine=b""):
    probe = Probe.model_validate(made_up_probe(trtexec=trtexec))
    with workspace(LocalTransport(str(tmp_path / "device"), sys.executable), keep=True, resume=directory) as place:
        _send(place, visit_with(tmp_path / "here", model, engine), "trtexec")
        return build_engine(place, "trtexec", probe, 10), Path(directory, "engine.plan").read_bytes()


def test_an_engine_of_the_same_files_is_used_again(tmp_path, directory):
    assert build(tmp_path, directory, b"first") == ("Engine built on the device with trtexec.", b"first")
    assert build(tmp_path, directory, b"first", "/bin/false") == ("Engine of the try before.", b"first")


def test_an_engine_that_was_built_in_place_of_a_shipped_one_is_used_again(tmp_path, directory):
    shipped = {"engine": b"of another TensorRT"}
    build(tmp_path, directory, b"first", **shipped)
    Path(directory, "answer.json").write_text("{}")
    assert build(tmp_path, directory, b"first", "/bin/false", **shipped) == ("Engine of the try before.", b"first")
    assert Path(directory, "answer.json").exists()
    # What was made of other files goes.
    assert build(tmp_path, directory, b"second", **shipped) == ("Engine built on the device with trtexec.", b"second")
    assert not Path(directory, "answer.json").exists()


def test_an_engine_of_another_model_is_built_anew(tmp_path, directory):
    build(tmp_path, directory, b"first")
    assert build(tmp_path, directory, b"second") == ("Engine built on the device with trtexec.", b"second")


def test_half_of_an_engine_is_built_anew(tmp_path, directory):
    with pytest.raises(DeviceError, match="building the engine"):
        build(tmp_path, directory, b"first", "/bin/false")
    assert Path(directory, "engine.plan").exists()
    assert build(tmp_path, directory, b"first")[0] == "Engine built on the device with trtexec."
