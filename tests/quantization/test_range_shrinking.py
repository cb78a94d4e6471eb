"""Ranges that few values stretch are cut where outputs gain by it, and only there."""

from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.dialect import Dialect
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.statistics.range_shrinking import FACTORS, best_factor, squared_error
from small_graphs import SIGNED, context, executed_operators, graph, node, run, sqnr

WIDTH, ROWS = 32, 64
PLAIN = {"smoothing": False, "outlier_channels": 0, "bias_correction": False, "range_estimator": "min-max"}


def saturating(bound, *, batch="n", more=(), arrays_more=None, outputs=("y",), types=None):
    """Return `y = clip(x a) b`: what is far out in `x` saturates, if the bound is small. More nodes may follow."""
    generator = np.random.default_rng(0)
    arrays = {
        "a": np.eye(WIDTH, dtype=np.float32),
        "b": generator.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32),
        "low": np.float32(-bound),
        "high": np.float32(bound),
        **(arrays_more or {}),
    }
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Clip", ["h", "low", "high"], "c"),
        node("MatMul", ["c", "b"], "y"),
        *more,
    ]
    return graph(nodes, arrays, {"x": [batch, ROWS, WIDTH]}, outputs, types=types)


def heavy_tailed(samples=16, seed=0):
    """Return small numbers, three in a thousand of which are a hundred times larger."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-1, 1, (samples, ROWS, WIDTH)).astype(np.float32)
    x[generator.random(x.shape) < 0.003] *= 100
    x[0, 0, 0] = 100
    return {"x": x}


def quantized(model, data, dialect: Dialect = DIALECT, **options):
    used = context(QuantizeInt8Options(**{**PLAIN, **options}), data, dialect)
    return QuantizeInt8().apply(model, used), used.notes.remarks


def scales(model) -> dict[str, float]:
    pairs = [each for each in model.graph if each.op_type == "QuantizeLinear"]
    return {each.inputs[0].name: float(each.inputs[1].const_value.numpy()) for each in pairs}


def input_scale(model) -> float:
    return scales(model)["x"]


def shrunk(remarks) -> bool:
    return any("Shrunk" in remark for remark in remarks)


@pytest.mark.parametrize("dialect", [DIALECT, SIGNED], ids=["onnx-cpu", "signed"])
def test_a_range_is_cut_where_what_lies_beyond_saturates_anyway(dialect):
    model, unseen = saturating(1.0), heavy_tailed(seed=1)
    cut, remarks = quantized(model, heavy_tailed(), dialect)
    whole, silent = quantized(model, heavy_tailed(), dialect, range_shrinking=False)
    assert input_scale(cut) == pytest.approx(FACTORS[-1] * input_scale(whole))
    assert any(remark.startswith("Shrunk the ranges of 1 activations") for remark in remarks)
    assert not any("Shrunk" in remark for remark in silent)
    expected = run(model, unseen)["y"]
    # A step of a quarter has a sixteenth of the noise, or 12 dB less; other roundings take their part of that.
    assert sqnr(expected, run(cut, unseen)["y"]) > sqnr(expected, run(whole, unseen)["y"]) + 6


def test_a_range_stays_where_its_ends_count():
    model, data = saturating(1000.0), heavy_tailed()
    cut, remarks = quantized(model, data)
    whole, _ = quantized(model, data, range_shrinking=False)
    assert cut.digest() == whole.digest()
    assert not any("Shrunk" in remark for remark in remarks)


def test_nothing_is_run_where_nothing_is_stretched_or_too_little_was_seen(monkeypatch):
    loaded = Counter()
    import edgesmith_quantization.statistics.range_shrinking as module

    monkeypatch.setattr(module, "ReferenceSession", lambda *_, **__: loaded.update(["session"]))
    even = {"x": np.random.default_rng(0).uniform(-1, 1, (16, ROWS, WIDTH)).astype(np.float32)}
    few = {name: array[:4] for name, array in heavy_tailed().items()}
    for data in (even, few):
        quantized(saturating(1.0), data)
    assert not loaded


def test_the_model_is_not_changed_and_the_choice_is_repeated():
    model = saturating(1.0)
    before = model.digest()
    first, second = (quantized(model, heavy_tailed())[0].digest() for _ in range(2))
    assert first == second
    assert model.digest() == before


@pytest.mark.parametrize("batch", [1, 3, 5, 8, 16])
def test_a_graph_of_a_fixed_batch_is_given_whole_batches(batch):
    cut, remarks = quantized(saturating(1.0, batch=batch), heavy_tailed(4 * batch if batch > 3 else 24))
    assert shrunk(remarks)
    assert input_scale(cut) > 0


def test_an_output_that_a_cut_would_ruin_forbids_it():
    """`h` holds the large values themselves, of which a quarter of the range would lose three quarters."""
    model, data = saturating(1.0, outputs=("h", "y")), heavy_tailed()
    cut, remarks = quantized(model, data)
    whole, _ = quantized(model, data, range_shrinking=False)
    assert not shrunk(remarks)
    assert cut.digest() == whole.digest()


def test_outputs_that_rounding_does_not_reach_have_no_say():
    more = (node("Relu", ["x"], "r"),)
    _, remarks = quantized(saturating(1.0, more=more, outputs=("y", "r")), heavy_tailed())
    assert any("to 1 of 2 outputs fell by" in remark for remark in remarks)


def test_a_factor_that_makes_an_output_nan_is_not_taken():
    """The square root of the largest value beyond 60 is NaN where ranges end at 50."""
    more = (
        node("ReduceMax", ["h"], "most", keepdims=0),
        node("Sub", ["most", "bound"], "beyond"),
        node("Sqrt", ["beyond"], "z"),
    )
    model = saturating(1.0, more=more, arrays_more={"bound": np.float32(60)}, outputs=("y", "z"))
    data = heavy_tailed()
    data["x"][:, 0, 0] = 100
    cut, _ = quantized(model, data)
    assert np.isfinite(run(cut, data)["z"]).all()


@pytest.mark.parametrize("infinite", [slice(0, 3), slice(None)], ids=["in places", "everywhere"])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_only_finite_places_of_an_output_are_compared(infinite):
    mask = np.zeros(WIDTH, np.float32)
    mask[infinite] = -np.inf
    model = saturating(1.0, more=(node("Add", ["y", "mask"], "z"),), arrays_more={"mask": mask}, outputs=("y", "z"))
    cut, remarks = quantized(model, heavy_tailed())
    whole, _ = quantized(model, heavy_tailed(), range_shrinking=False)
    assert input_scale(cut) == pytest.approx(FACTORS[-1] * input_scale(whole))
    assert not any("nan" in remark or "inf" in remark for remark in remarks)


def test_outputs_in_bfloat16_are_compared_too():
    model = saturating(
        1.0,
        more=(node("Cast", ["y"], "z", to=TensorProto.BFLOAT16),),
        outputs=("z",),
        types={"z": TensorProto.BFLOAT16},
    )
    assert shrunk(quantized(model, heavy_tailed())[1])


def test_class_numbers_alone_say_nothing_about_ranges():
    more = (node("ArgMax", ["y"], "class", axis=-1),)
    model = saturating(1.0, more=more, outputs=("class",), types={"class": TensorProto.INT64})
    assert not shrunk(quantized(model, heavy_tailed())[1])


def test_products_that_have_to_keep_a_ratio_of_their_own_keep_the_range_they_were_measured_with():
    """The first product keeps about 23 dB with the whole range, and about 4 dB with a quarter of it."""
    model, unseen, least = saturating(1.0), heavy_tailed(seed=1), 20.0
    checked, remarks = quantized(model, heavy_tailed(), minimum_sqnr_db=least)
    found = ReferenceSession(checked.ir, taps=["h"]).run(unseen)["h"]
    assert "x" in scales(checked)
    assert sqnr(unseen["x"], found) > least  # `a` is the identity.
    assert not shrunk(remarks)


def pooled(side=32):
    """Return convolutions around a MaxPool and a Clip, and data of which few values are large."""
    generator = np.random.default_rng(0)
    same = np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)
    mixing = generator.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32)
    arrays = {"w": same, "v": same, "u": mixing, "low": np.float32(-1), "high": np.float32(1)}
    nodes = [
        node("Conv", ["x", "w"], "h"),
        node("MaxPool", ["h"], "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "v"], "c"),
        node("Clip", ["c", "low", "high"], "d"),
        node("Conv", ["d", "u"], "y"),
    ]
    x = generator.uniform(-1, 1, (16, 4, side, side)).astype(np.float32)
    x[generator.random(x.shape) < 0.0005] *= 100
    x[0, 0, 0, 0] = 100
    return graph(nodes, arrays, {"x": ["n", 4, side, side]}), {"x": x}


def test_convolutions_whose_outputs_are_rounded_stay_in_integers_and_a_pool_keeps_one_scale():
    model, data = pooled()
    cut, remarks = quantized(model, data)
    whole, _ = quantized(model, data, range_shrinking=False)
    assert shrunk(remarks)
    before, after = scales(whole), scales(cut)
    assert after["h"] == after["p"] < before["h"] == before["p"]
    assert executed_operators(cut) == executed_operators(whole)
    expected = run(model, data)["y"]
    assert sqnr(expected, run(cut, data)["y"]) > sqnr(expected, run(whole, data)["y"])


@pytest.mark.parametrize(
    ("errors", "best"),
    [
        ([[1, 0.5, 0.2]], 2),
        ([[1, 0.95, 0.92]], 0),
        # The output that is ruined counts, however small its error is beside the other's.
        ([[1000, 500, 10], [1, 0.8, 2]], 1),
        ([[1000, 500, 10], [1, 1.5, 2]], 0),
        # Many outputs do not outvote one.
        ([[1, 0.5, 0.8], *[[1, 0.8, 0.4]] * 9], 1),
        # One that nothing changes, or only by chance, neither asks nor forbids; one that was exact stays exact.
        ([[1, 0.5, 0.2], [0, 0, 0], [1, 1.05, 0.97]], 2),
        ([[1, 0.5, 0.2], [0, 0, 1e-9]], 1),
        ([[1, 0.5, np.inf]], 1),
        ([[np.inf, 0.5, 0.2]], 0),
        ([[1, 0.5, 0.2], [np.inf, np.inf, np.inf]], 0),
        (np.zeros((0, 3)), 0),
        (np.zeros((1, 3)), 0),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_output_that_gains_least_decides(errors, best):
    assert best_factor(np.array(errors, np.float64))[0] == best


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_errors_count_where_the_expected_number_is_finite():
    expected = np.float32([1, -np.inf, np.nan, 2])
    assert squared_error(np.float32([1.5, np.nan, 0, 2]), expected) == 0.25
    assert squared_error(np.float32([1, 0, 0, np.nan]), expected) == np.inf
    assert squared_error(np.float32([1, 0, 0, np.inf]), expected) == np.inf
    assert squared_error(np.float64([1e200]), np.float64([0])) == np.inf
