"""Whole recipes in process, with a fake device."""

import numpy as np
import pytest

from edgesmith import Tier
from edgesmith.errors import PluginError
from edgesmith.testing import fake_runner, fake_target, isolated_registry, run_recipe, tiny_cnn, tiny_mlp
from edgesmith.testing.models import tiny_bert
from edgesmith_calibration.sources import Batch


@pytest.fixture
def registry():
    import edgesmith_quantization

    return isolated_registry(edgesmith_quantization)


def test_a_recipe_gives_a_ledger_with_the_times_of_the_table(registry, tmp_path):
    times = {"source": 8.0, "quantize-int8": 2.0, "lower to fake-target": 1.0}
    artifact = run_recipe(registry, tiny_bert(), ["quantize-int8"], out=tmp_path, latency_ms=times)
    rows = {row.stage: row for row in artifact.ledger.rows}
    assert {name: row.latency_ms.value for name, row in rows.items()} == times
    assert rows["quantize-int8"].speedup.value == 4.0
    assert artifact.report.is_file()


def test_every_number_of_a_fake_says_that_it_is_fake(registry, tmp_path):
    ledger = run_recipe(registry, tiny_mlp(), ["quantize-weights"], out=tmp_path).ledger
    latency = ledger.chosen_row.latency_ms
    assert (ledger.target, latency.tier) == ("fake-target", Tier.SIMULATED)
    assert {latency.conditions[name] for name in ("runtime", "processor", "provider")} == {"fake"}


def test_a_step_that_the_table_makes_slower_is_undone(registry, tmp_path):
    recipe = {"steps": [{"method": "quantize-int8"}], "keep": "if-pays", "budget": {"min_speedup": 1.1}}
    # Stages are lowered before they are judged, and named so.
    times = {"source": 1.0, "quantize-int8, lowered": 3.0}
    ledger = run_recipe(registry, tiny_mlp(), recipe, out=tmp_path, latency_ms=times).ledger
    assert ledger.rows[1].status == "undone"


def test_runs_of_one_folder_share_a_store(registry, tmp_path):
    cached = [run_recipe(registry, tiny_mlp(), ["quantize-int8"], out=tmp_path).ledger.rows[1].cached for _ in range(2)]
    assert cached == [False, True]


def test_nothing_that_is_installed_is_found(registry, tmp_path):
    with pytest.raises(PluginError, match="no target 'onnx-cpu'"):
        run_recipe(registry, tiny_mlp(), ["quantize-int8"], out=tmp_path, target="onnx-cpu")


def test_two_fake_runners_have_tables_of_their_own(tmp_path):
    first, second = (isolated_registry(fake_runner({"a": time}), fake_target()) for time in (1.0, 2.0))
    runners = [each.load(each.runner("fake-runner"))(threads=1) for each in (first, second)]
    assert [runner.latency({"a": tmp_path}, {}).latency_ms("a").value for runner in runners] == [1.0, 2.0]


def test_the_fake_runner_computes_real_outputs(tmp_path):
    registry = isolated_registry(fake_runner(), fake_target())
    target = registry.load(registry.target("fake-target"))()
    build = target.build(tiny_cnn(), tmp_path)
    runner = registry.load(registry.runner("fake-runner"))(threads=1)
    image = np.random.default_rng(0).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    (outputs,) = runner.outputs(tmp_path / build.entry, [Batch({"image": image})])
    assert outputs["logits"].shape == (2, 4)
