"""Output and layer error between stages."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_models import ArrayData, dense_model

from edgesmith.errors import MeasurementError
from edgesmith.host.records import Tier
from edgesmith.measure.contained import ContainedRunner
from edgesmith.measure.divergence import LOWEST_DB, Divergence, layer_errors, output_error
from edgesmith.measure.local import LocalRunner
from edgesmith.measure.reference import ReferenceRunner
from small_graphs import graph, node


def measured(expected, actual) -> Divergence:
    divergence = Divergence()
    divergence.update(np.asarray(expected), np.asarray(actual))
    return divergence


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 7), st.floats(1e-4, 10), st.integers(0, 2**31))
def test_streaming_equals_the_definition(size: int, pieces: int, noise: float, seed: int):
    random = np.random.default_rng(seed)
    expected = random.normal(size=size).astype(np.float32)
    actual = expected + noise * random.normal(size=size).astype(np.float32)
    divergence = Divergence()
    for left, right in zip(np.array_split(expected, pieces), np.array_split(actual, pieces), strict=True):
        divergence.update(left, right)
    a, b = expected.astype(np.float64), actual.astype(np.float64)
    assert divergence.sqnr_db == pytest.approx(10 * np.log10((a @ a) / ((a - b) @ (a - b))), rel=1e-9)
    assert divergence.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
    assert divergence.max_abs == np.abs(a - b).max()


def test_equal_values_are_infinitely_good():
    same = measured([1.0, -2.0], [1.0, -2.0])
    assert same.sqnr_db == math.inf and same.cosine == 1 and same.max_abs == 0


def test_masks_of_minus_infinity_do_not_count():
    divergence = measured([-np.inf, 1.0, 2.0], [-np.inf, 1.0, 1.9])
    assert divergence.sqnr_db == pytest.approx(10 * np.log10(5 / 0.01))
    assert measured([-np.inf, np.inf], [-np.inf, np.inf]).sqnr_db == math.inf


@pytest.mark.parametrize("actual", [[np.nan, 1.0], [np.inf, 1.0]])
def test_values_that_stop_being_finite_are_the_worst(actual: list):
    divergence = measured([1.0, 1.0], actual)
    assert divergence.sqnr_db == LOWEST_DB and divergence.cosine == 0


def test_noise_on_silence_is_the_worst():
    assert measured([0.0, 0.0], [0.0, 0.1]).sqnr_db == LOWEST_DB


def test_output_error_grows_with_the_change(small: Path, tmp_path: Path, data: ArrayData):
    runner = LocalRunner()
    near = dense_model(tmp_path / "near.onnx", noise=1e-4)
    far = dense_model(tmp_path / "far.onnx", noise=1e-1)
    same, little, much = (output_error(runner, small, m, data, against="source") for m in (small, near, far))
    assert same.sqnr_db == math.inf and same.against == "source"
    assert same.sqnr_db > little.sqnr_db > much.sqnr_db
    assert little.cosine > much.cosine and little.max_abs < much.max_abs
    assert data.readings == 3


def test_output_error_without_samples_is_an_error(small: Path):
    with pytest.raises(MeasurementError, match="no sample"):
        output_error(LocalRunner(), small, small, ArrayData(np.ones((0, 16), dtype=np.float32)), against="source")


def test_layer_errors_accumulate_from_the_first_changed_layer(tmp_path: Path, data: ArrayData):
    import onnx_ir as ir

    before = dense_model(tmp_path / "before.onnx", depth=4)
    changed = ir.load(before)
    weight = changed.graph.initializers["weight_1"]
    weight.const_value = ir.tensor(weight.const_value.numpy() + np.float32(0.01), name="weight_1")
    labels = {f"hidden_{i}": f"block {i} / output" for i in range(3)} | {"logits": "head", "gone": "nowhere"}
    errors = layer_errors(before, changed, labels, data)
    assert [error.value for error in errors] == ["hidden_0", "hidden_1", "hidden_2", "logits"]
    assert errors[0].sqnr_db > 100
    assert all(error.sqnr_db < 60 for error in errors[1:])
    assert errors[1].layer == "block 1 / output"


def test_layer_errors_round_float16_where_the_outputs_are_rounded(data: ArrayData):
    # Around 4096 float16 counts in steps of 2 or 4, so the quarter that is added is lost there.
    nodes = [node("Cast", ["x"], "small", to=10), node("Add", ["small", "large"], "lifted")]
    nodes += [node("Add", ["lifted", "more"], "moved"), node("Sub", ["moved", "large"], "back")]
    nodes.append(node("Cast", ["back"], "y", to=1))
    before, after = (
        graph(nodes, {"large": np.float16(4096), "more": np.float16(more)}, {"x": ["n", 16]}).ir for more in (0, 0.25)
    )
    labels = {"back": "head"}
    (loose,) = layer_errors(before, after, labels, data)
    (rounded,) = layer_errors(before, after, labels, data, round_half=True)
    assert rounded.sqnr_db == math.inf
    assert loose.sqnr_db < 30


def test_who_rounds_float16_says_so():
    runners = (ReferenceRunner(), ContainedRunner("a plugin", ReferenceRunner, threads=1, tier=Tier.REFERENCE))
    assert all(runner.rounds_half for runner in runners)
    assert not LocalRunner().rounds_half


def test_no_common_values_give_no_layer_errors(small: Path, data: ArrayData):
    assert layer_errors(small, small, {"gone": "nowhere"}, data) == ()
    assert data.readings == 0
