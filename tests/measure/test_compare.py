"""Comparison of two artifacts, and the ledger file that it reads."""

import json
import math
from pathlib import Path

import pytest

from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier
from edgesmith.ledger import LayerError, Ledger, LedgerRow, Measurement, load_ledger
from edgesmith.ledger import OutputError as OutputErrorRow
from edgesmith.measure.compare import compare_artifacts

CONDITIONS = {"runtime": "onnxruntime 1", "threads": 1, "batch": 1, "processor": "made up"}


def artifact(
    directory: Path, *, latency: float = 10.0, metric_name: str = "accuracy", data: str = "500 texts", **other
):
    """Write a ledger with made-up figures."""
    conditions = {**CONDITIONS, **other.pop("conditions", {})}
    tier = other.pop("tier", Tier.REFERENCE)
    machine = other.pop("machine", {"system": "Linux 1"})
    row = LedgerRow(
        index=0,
        stage="source",
        metric=Measurement(value=90.0, unit="%", tier=tier, samples=500),
        latency_ms=Measurement(value=latency, unit="ms", tier=tier, samples=30, conditions=conditions),
        peak_memory_bytes=Measurement(
            value=1e8, unit="bytes", tier=tier, conditions={**conditions, "baseline_bytes": int(latency * 1e6)}
        ),
        size_bytes=Measurement(value=1e6, unit="bytes", tier=tier),
    )
    ledger = Ledger(
        source="made-up",
        target="onnx-cpu",
        metric=metric_name,
        rows=(row.model_copy(update=other),),
        chosen=0,
        verdict="Made up.",
        data={"evaluation": data},
        machine=machine,
    )
    directory.mkdir()
    (directory / "ledger.json").write_text(ledger.model_dump_json())
    return directory


def figures(first: Path, second: Path) -> dict:
    return {figure.name: figure for figure in compare_artifacts(first, second).figures}


def test_equal_conditions_are_compared(tmp_path: Path):
    found = figures(artifact(tmp_path / "a"), artifact(tmp_path / "b", latency=5.0))
    assert found["latency"].ratio == 0.5 and not found["latency"].refusal
    assert "interleaved" in found["latency"].note
    assert found["accuracy"].difference == 0
    assert found["size"].ratio == found["peak memory"].ratio == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conditions": {"threads": 4}}, "threads 1 and 4"),
        ({"conditions": {"processor": "another"}}, "processor made up and another"),
        ({"conditions": {"runtime": "onnxruntime 2"}}, "runtime onnxruntime 1 and onnxruntime 2"),
        ({"conditions": {"power_mode": "15 W"}}, "power_mode unknown and 15 W"),
        ({"tier": Tier.DEVICE}, "tier reference and device"),
        ({"machine": {"system": "Linux 2"}}, "system Linux 1 and Linux 2"),
    ],
)
def test_different_conditions_are_refused_in_words(tmp_path: Path, change: dict, words: str):
    latency = figures(artifact(tmp_path / "a"), artifact(tmp_path / "b", **change))["latency"]
    assert words in latency.refusal
    assert latency.ratio is None and latency.difference is None


def test_metrics_on_other_data_or_of_other_kind_are_refused(tmp_path: Path):
    first = artifact(tmp_path / "a")
    assert "different data" in figures(first, artifact(tmp_path / "b", data="9 texts"))["accuracy"].refusal
    assert "different metrics" in figures(first, artifact(tmp_path / "c", metric_name="top5"))["accuracy"].refusal


def test_equal_hashes_are_the_same_data_whatever_the_file_is_called(tmp_path: Path):
    first = artifact(tmp_path / "a", data="texts in texts.csv, 400 samples, sha256 b26726e50876ecf8")
    second = artifact(tmp_path / "b", data="texts in texts.jsonl, 400 samples, sha256 b26726e50876ecf8")
    other = artifact(tmp_path / "c", data="texts in texts.csv, 400 samples, sha256 05c3ff17a9236e7d")
    assert not figures(first, second)["accuracy"].refusal
    assert not compare_artifacts(first, second).differences
    assert "different data" in figures(first, other)["accuracy"].refusal
    assert "evaluation data" in compare_artifacts(first, other).differences


def test_missing_numbers_are_named(tmp_path: Path):
    second = artifact(tmp_path / "b", latency_ms=None, metric=None)
    found = figures(artifact(tmp_path / "a"), second)
    assert found["latency"].refusal == "not measured in the second artifact"
    assert found["accuracy"].ratio is None


def test_what_else_differs_is_listed(tmp_path: Path):
    comparison = compare_artifacts(artifact(tmp_path / "a"), artifact(tmp_path / "b", data="9 texts"))
    assert comparison.differences == {"evaluation data": ("500 texts", "9 texts")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        ("", "is not a valid ledger"),
        ("{}", "is not a valid ledger: source: Field required"),
        ('{"rows": 3', "is not a valid ledger"),
    ],
)
def test_directories_without_a_valid_ledger_are_refused(tmp_path: Path, content: str | None, words: str):
    if content is not None:
        (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(MeasurementError, match=words):
        load_ledger(tmp_path)


def test_a_chosen_row_that_does_not_exist_is_refused(tmp_path: Path):
    path = artifact(tmp_path / "a") / "ledger.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chosen": 7}))
    with pytest.raises(MeasurementError, match="names row 7 as chosen"):
        load_ledger(tmp_path / "a")


def test_infinite_ratios_survive_the_file(tmp_path: Path):
    equal = OutputErrorRow(against="source", sqnr_db=math.inf, cosine=1.0, max_abs=0.0)
    layer = LayerError(value="v", layer="block 0", sqnr_db=math.inf)
    directory = artifact(tmp_path / "a", errors=(equal,), layers=(layer,))
    text = (directory / "ledger.json").read_text()
    assert '"sqnr_db":null' in text
    row = load_ledger(directory).chosen_row
    assert row.errors == (equal,) and row.layers == (layer,)
