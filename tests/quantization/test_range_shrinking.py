"""Ranges that few values stretch are cut where outputs gain by it, and only there."""

from collections import Counter

import numpy as np
import pytest

from edgesmith.host.dialect import Dialect
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.statistics.range_shrinking import FACTORS
from small_graphs import SIGNED, context, graph, node, run, sqnr

WIDTH, ROWS = 32, 64
PLAIN = {"smoothing": False, "outlier_channels": 0, "bias_correction": False, "range_estimator": "min-max"}


def saturating(bound):
    """Return `y = clip(x a) b`: what is far out in `x` saturates, if the bound is small."""
    generator = np.random.default_rng(0)
    arrays = {
        "a": np.eye(WIDTH, dtype=np.float32),
        "b": generator.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32),
        "low": np.float32(-bound),
        "high": np.float32(bound),
    }
    nodes = [
        node("MatMul", ["x", "a"], "h"),
        node("Clip", ["h", "low", "high"], "c"),
        node("MatMul", ["c", "b"], "y"),
    ]
    return graph(nodes, arrays, {"x": ["n", ROWS, WIDTH]})


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


def input_scale(model) -> float:
    (pair,) = [each for each in model.graph if each.op_type == "QuantizeLinear" and each.inputs[0].name == "x"]
    return float(pair.inputs[1].const_value.numpy())


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
