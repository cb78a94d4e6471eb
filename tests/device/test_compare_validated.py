"""`edgesmith compare` of artifacts that were validated: times of one device under one set of conditions."""

import json
import shutil
import sys

import pytest

from edgesmith.cli import main
from edgesmith.device.record import compare_records, load_record

QUICK = ("--set", "seconds=0", "--set", "fewest_runs=5", "--set", "warmup_runs=1", "--set", "threads=1")


@pytest.fixture(scope="session")
def validated(compiled, tmp_path_factory):
    """A Jetson's artifact after a run in ONNX Runtime here."""
    artifact = tmp_path_factory.mktemp("validated") / "artifact"
    shutil.copytree(compiled["jetson-orin-nano"], artifact)
    words = [*QUICK, "--set", "runtime=onnxruntime", "--set", f"python={sys.executable}"]
    assert main(["validate", str(artifact), "--on", "local", *words]) == 0
    return artifact


@pytest.fixture
def pair(validated, tmp_path):
    return [shutil.copytree(validated, tmp_path / name) for name in ("fp16", "int8")]


def rewrite(artifact, *changes):
    """Write one made-up run for each change: median, power mode, machine, driver, address."""
    path = artifact / "validation.json"
    record = json.loads(path.read_text())
    (seen,) = record["runs"]
    runs = []
    for change in changes:
        run = json.loads(json.dumps(seen))
        latency = run["row"]["latency_ms"]
        latency |= {"value": change.get("ms", 8.0), "low": 7.5, "high": 8.5}
        machine = change.get("machine", "made-up board")
        latency["conditions"] |= {"power_mode": change.get("mode", "15W"), "processor": machine}
        run["machine"] |= {"machine": machine, "driver": change.get("driver", "1")}
        run["on"] = change.get("on", "ssh://board")
        if "mj" in change:
            run["energy_mj"] = {**latency, "value": change["mj"], "unit": "mJ", "low": None, "high": None}
        runs.append(run)
    path.write_text(json.dumps({**record, "runs": runs}))


def compared(pair):
    return {figure.name: figure for figure in compare_records(*map(load_record, pair))}


def test_times_of_one_device_are_compared_with_spread_and_the_device_named(pair, capsys):
    rewrite(pair[0], {"ms": 8.0})
    rewrite(pair[1], {"ms": 4.0})
    capsys.readouterr()
    assert main(["compare", *map(str, pair), "--json"]) == 0
    figures = {figure["name"]: figure for figure in json.loads(capsys.readouterr().out)["figures"]}
    # Nothing was timed while compiling, and that is not said beside a time from a device.
    assert "latency" not in figures
    found = figures["latency on made-up board (reference)"]
    assert found["ratio"] == 0.5 and not found["refusal"]
    assert found["before"]["low"] == 7.5 and found["before"]["high"] == 8.5
    assert "power mode 15W" in found["note"]
    assert main(["compare", *map(str, pair)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "8.00 ms 4.00 ms 0.500×" in shown
    assert "quartiles [7.50 to 8.50] and [7.50 to 8.50] ms" in shown


def test_other_power_modes_are_refused_in_words(pair):
    rewrite(pair[0], {"mode": "15W"})
    rewrite(pair[1], {"mode": "MAXN"})
    (found,) = compared(pair).values()
    assert found.ratio is None and "power_mode 15W and MAXN" in found.refusal


def test_of_several_modes_those_that_both_have_are_compared_newest_first(pair):
    rewrite(pair[0], {"mode": "15W", "ms": 9.0}, {"mode": "15W", "ms": 8.0}, {"mode": "MAXN", "ms": 3.0})
    rewrite(pair[1], {"mode": "15W", "ms": 4.0}, {"mode": "7W", "ms": 20.0})
    (found,) = compare_records(*map(load_record, pair))
    assert (found.before.value, found.after.value) == (8.0, 4.0)


def test_both_modes_are_shown_where_both_artifacts_have_both(pair):
    for artifact in pair:
        rewrite(artifact, {"mode": "15W", "ms": 8.0}, {"mode": "MAXN", "ms": 4.0})
    found = compare_records(*map(load_record, pair))
    assert [figure.before.value for figure in found] == [4.0, 8.0]
    assert [figure.ratio for figure in found] == [1, 1]


def test_other_devices_are_refused_in_words(pair):
    rewrite(pair[0], {"machine": "board A"})
    rewrite(pair[1], {"machine": "board B"})
    found = compared(pair)
    assert found.keys() == {"latency on board A", "latency on board B"}
    assert "only on board B, and times of different devices are not comparable" in found["latency on board A"].refusal
    assert all(figure.ratio is None for figure in found.values())


def test_an_artifact_that_was_never_there_is_named(pair):
    rewrite(pair[0], {})
    (pair[1] / "validation.json").unlink()
    (found,) = compared(pair).values()
    assert found.refusal == "the second artifact was not validated there"


def test_another_driver_is_another_device(pair):
    rewrite(pair[0], {"driver": "1"})
    rewrite(pair[1], {"driver": "2"})
    (found,) = compared(pair).values()
    assert found.ratio is None and "driver 1 and 2" in found.refusal


def test_two_addresses_are_said(pair):
    rewrite(pair[0], {"on": "ssh://a"})
    rewrite(pair[1], {"on": "ssh://b"})
    (found,) = compared(pair).values()
    assert found.ratio == 1 and "on ssh://a and on ssh://b" in found.note


def test_energy_is_compared_where_both_have_it(pair):
    rewrite(pair[0], {"mj": 100.0})
    rewrite(pair[1], {"mj": 25.0})
    assert compared(pair)["energy on made-up board (reference)"].ratio == 0.25


def test_without_any_time_it_says_how_to_get_one(pair, capsys):
    for artifact in pair:
        (artifact / "validation.json").unlink()
    assert main(["compare", *map(str, pair)]) == 0
    assert "edgesmith validate ARTIFACT --on DEVICE" in " ".join(capsys.readouterr().out.split())
