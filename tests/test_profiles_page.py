"""The page about profiles and networks says what its rows say, whatever they hold."""

import pytest
from benchmarks import profiles
from benchmarks.profiles_page import write_page


def row(profile, **facts):
    made = {"profile": profile, "network": "net", "recipe": "int8", "samples": {"calibration": 1, "evaluation": 2}}
    return made | {"when": "2026-01-02T03:04:05", "machine": "x86_64"} | facts


def artifact(profile, version="1.0", gate="", **facts):
    built = {"bytes": 10**6, "sqnr_db": 20.0, "gate": gate, "build": {}, "validator": {"passed": True}}
    return row(profile, status="artifact", versions={"onnxruntime": version, "onnx": "2.0"}, **(built | facts))


def page(tmp_path, *rows):
    write_page(tmp_path / "page.md", rows, ["net"], {"onnx-cpu": (), "android-qnn": ()})
    return (tmp_path / "page.md").read_text()


def test_every_version_and_machine_of_the_rows_is_named(tmp_path):
    rows = artifact("onnx-cpu"), artifact("android-qnn", "1.1", "onnxruntime-qnn 2.7.0, ", machine="aarch64")
    text = " ".join(page(tmp_path, *rows).split())
    assert (
        "on aarch64 and x86_64 without a GPU, with ONNX Runtime 1.0 and 1.1, onnx 2.0, onnxruntime-qnn 2.7.0." in text
    )


def test_a_page_without_an_artifact_and_one_without_rows_are_written(tmp_path):
    assert "on x86_64 without a GPU." in page(tmp_path, row("onnx-cpu", status="refused", error="no."))
    assert "Seen on" not in page(tmp_path)


@pytest.mark.parametrize(
    ("gate", "cell"),
    [
        ("No simulator answered (it did not answer within 300 s)", "compiled for v69 to v75 |"),
        ("No simulator answered (it is not installed)", "compiled for v69 to v75, simulator not asked |"),
    ],
)
def test_a_simulator_that_was_not_asked_is_told_from_one_that_is_slow(tmp_path, gate, cell):
    contexts = {"v68": {"status": "rejected"}, "v69": {"status": "built"}, "v75": {"status": "built"}}
    assert cell in page(tmp_path, artifact("android-qnn", gate=gate, build={"contexts": contexts}))


def test_rows_that_do_not_name_their_machine_have_that_of_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "OUT", tmp_path / "rows.json")
    assert profiles.known_rows() == []
    profiles.OUT.write_text('{"machine": "x86_64", "rows": [{"network": "a"}, {"network": "b", "machine": "arm64"}]}')
    assert [each["machine"] for each in profiles.known_rows()] == ["x86_64", "arm64"]
