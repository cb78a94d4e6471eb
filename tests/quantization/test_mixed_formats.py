"""Several formats in one graph, the probe that measures them, and sensitivities of single groups."""

import itertools
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import StepError
from edgesmith.host.context import Context
from edgesmith.host.trial import Scoring
from edgesmith.progress import SilentProgress
from edgesmith_calibration.metrics import Accuracy, Perplexity, Sqnr
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.arithmetic.weight_bits import WeightBits
from edgesmith_quantization.search import sensitivity
from edgesmith_quantization.search.formats import FORMATS, compose, offered
from edgesmith_quantization.search.layer_groups import group_layers
from edgesmith_quantization.search.output_probe import OutputProbe
from edgesmith_quantization.search.sensitivity import Deadline, Writer, measure_sensitivities
from small_graphs import graph, node, run, sqnr

WIDTH = 64
NODES = tuple(f"node_h{index}" for index in range(4))


def chain():
    generator = np.random.default_rng(0)
    arrays = {f"w{i}": generator.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for i in range(4)}
    nodes = [node("MatMul", ["x" if i == 0 else f"h{i - 1}", f"w{i}"], f"h{i}") for i in range(4)]
    return graph([*nodes, node("Tanh", ["h3"], "y")], arrays, {"x": ["n", WIDTH]})


def samples(count=16, seed=0):
    return {"x": np.random.default_rng(seed).normal(0, 1, (count, WIDTH)).astype(np.float32)}


def trial_context(count=16):
    return Context(None, DIALECT, Path(tempfile.mkdtemp()), calibration=ArraySource(samples(count)))


def probe(model, data=None, **options):
    return OutputProbe(model.ir, ArraySource(data or samples(seed=1)), Path(tempfile.mkdtemp()), **options)


def weight_types(model):
    """Return the types of constants of two dimensions or more, by what is left of their names."""
    found = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and len(value.const_value.shape) > 1 and name.startswith("w"):
            found.setdefault(name[:2], set()).add(value.const_value.dtype)
    return found


def test_every_node_gets_its_own_format_and_no_other():
    model = chain()
    assignment = {"int8": ["node_h0"], "int8-dynamic": ["node_h1"], "int4-weights": ["node_h2"]}
    result = compose(model, assignment, trial_context())
    types = weight_types(result)
    assert types["w0"] == types["w1"] == {ir.DataType.INT8}
    assert any(dtype in (ir.DataType.INT4, ir.DataType.UINT4) for dtype in types["w2"])
    assert types["w3"] == {ir.DataType.FLOAT}
    names = {each.op_type for each in result.graph}
    assert {"DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger"} <= names
    inputs = samples(seed=3)
    assert sqnr(run(model, inputs)["y"], run(result, inputs)["y"]) > 12


@pytest.mark.parametrize("name", [each.name for each in FORMATS])
def test_one_format_alone_is_its_method_bit_for_bit(name):
    model, context = chain(), trial_context()
    form = next(each for each in FORMATS if each.name == name)
    options = form.options(only=("node_h1",), **form.values)
    direct = form.method().apply(model, Context(options, DIALECT, context.scratch, calibration=context.calibration))
    assert compose(model, {name: ["node_h1"]}, context).digest() == direct.digest()


def test_an_assignment_of_nothing_is_the_float_model():
    model = chain()
    assert compose(model, {}, trial_context()).digest() == model.digest()
    assert compose(model, {"int8": []}, trial_context()).digest() == model.digest()


def test_a_node_that_a_format_does_not_take_is_named():
    with pytest.raises(StepError, match="node_y cannot be in format int8"):
        compose(chain(), {"int8": ["node_y"]}, trial_context())


def test_formats_that_a_target_would_only_simulate_are_not_offered():
    assert "fp8" not in offered(DIALECT) and "int4-weights" in offered(DIALECT)
    assert not {"int2-split", "int4-split"} & set(offered(DIALECT))
    assert "fp8" in offered(replace(DIALECT, float8="hardware"))


def test_refining_is_never_worse_on_the_samples_it_looks_at():
    """Second-order rounding lowers the error of outputs on the data of its statistics, by construction per layer."""
    model, context = chain(), trial_context(64)
    plain = compose(model, {"int2-weights": ["node_h3"]}, context)
    refined = compose(model, {"int2-weights": ["node_h3"]}, context, refine=True)
    linear = {"x": samples(64)["x"]}
    expected = run(model, linear)["y"]
    assert sqnr(expected, run(refined, linear)["y"]) > sqnr(expected, run(plain, linear)["y"])


def test_the_probe_measures_energy_over_all_samples():
    model, data = chain(), samples(seed=1)
    variant = compose(model, {"int8-dynamic": list(NODES)}, trial_context())
    quality = probe(model, data).measure(variant.ir)
    expected, actual = (
        np.concatenate([run(one, {"x": row[np.newaxis]}, "all")["y"] for row in data["x"]]) for one in (model, variant)
    )
    assert quality.sqnr_db == pytest.approx(sqnr(expected, actual), abs=1e-6)
    assert quality.noise == pytest.approx(10 ** (-quality.sqnr_db / 10))
    assert quality.metric_drop is None
    assert math.isinf(probe(model, data).measure(model.ir).sqnr_db)


@pytest.mark.parametrize(("higher_is_better", "sign"), [(True, 1), (False, -1)])
def test_a_drop_is_a_loss_in_the_direction_of_the_metric(higher_is_better, sign):
    model, data = chain(), samples(seed=1)
    labels = run(model, data)["y"].argmax(axis=1)
    scoring = Scoring("accuracy", Accuracy, higher_is_better=higher_is_better)
    own = OutputProbe(model.ir, ArraySource(data, labels), Path(tempfile.mkdtemp()), scoring=scoring)
    assert own.reference_metric == 100.0 and own.measure(model.ir).metric_drop == 0.0
    negated = chain()
    negated.graph.initializers["w3"].const_value = ir.tensor(-model.graph.initializers["w3"].const_value.numpy())
    assert own.measure(negated.ir).metric_drop == sign * 100.0


def test_without_labels_or_a_metric_for_them_nothing_is_scored():
    model, labels = chain(), np.zeros(16, np.int64)
    compared = Scoring("sqnr", Sqnr, needs_labels=False)
    folder = Path(tempfile.mkdtemp())
    assert OutputProbe(model.ir, ArraySource(samples(), labels), folder, scoring=compared).reference_metric is None
    assert probe(model, scoring=Scoring("perplexity", Perplexity)).reference_metric is None


def groups_of(model):
    return group_layers(model.graph, NODES, dict.fromkeys(NODES, 1))


def writer_of(model):
    takers = {name: frozenset(NODES) for name in ("int8-dynamic", "int4-weights")}
    return Writer(model, takers, trial_context())


def test_sensitivities_are_those_of_one_group_in_an_otherwise_float_model():
    model = chain()
    writer, held_out = writer_of(model), probe(model)
    formats = ["int8-dynamic", "int4-weights"]
    found = measure_sensitivities(groups_of(model), formats, writer, held_out, Deadline.after(600), SilentProgress())
    assert found.complete and len(found.groups) == 4
    for group, measured in zip(found.groups, found.measured, strict=True):
        assert set(measured) == set(formats)
        alone = compose(model, {"int4-weights": list(group.nodes)}, trial_context())
        assert measured["int4-weights"].quality == held_out.measure(alone.ir)
        bits = WeightBits.of(model.ir)
        assert bits.from_bytes(measured["int4-weights"].stored_bytes) == bits.per_weight(alone.ir)
        assert measured["int8-dynamic"].quality.noise < measured["int4-weights"].quality.noise
    assert list(writer.context.scratch.iterdir()) == []


def test_with_little_time_groups_of_one_kind_are_measured_together(monkeypatch):
    """A clock that advances by 1 at each look: after the first group there is time for one more measurement."""
    model = chain()
    ticks = itertools.count(0.0, 1.0)
    monkeypatch.setattr(sensitivity.time, "monotonic", lambda: next(ticks))
    found = measure_sensitivities(
        groups_of(model), ["int4-weights"], writer_of(model), probe(model), Deadline(3.0), SilentProgress()
    )
    assert len(found.groups) < 4
    assert sorted(name for group in found.groups for name in group.nodes) == list(NODES)


def test_bits_per_weight_count_scales_and_nothing_else():
    model = chain()
    bits = WeightBits.of(model.ir)
    assert bits.weights == 4 * WIDTH * WIDTH and bits.per_weight(model.ir) == 32.0
    assert bits.to_bytes(bits.from_bytes(12345)) == pytest.approx(12345)
    result = compose(model, {"int4-weights": list(NODES)}, trial_context())
    # Blocks of 32 with a float32 scale and, at most, a zero point of 4 bits: 4 + 1 to 4 + 1.125.
    assert 5.0 <= bits.per_weight(result.ir) <= 5.2
