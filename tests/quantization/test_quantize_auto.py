"""Mixed precision on small models: budgets kept on data not seen, misses admitted, times obeyed."""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.errors import DataError, StepError, TargetError
from edgesmith.host.context import Context
from edgesmith.host.dialect import Dialect, TensorFormat
from edgesmith.host.records import Tier
from edgesmith.host.trial import Scoring
from edgesmith.ledger import Measurement
from edgesmith_calibration.metrics import Accuracy, Sqnr
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_quantization.arithmetic.weight_bits import WeightBits
from edgesmith_quantization.options.auto import DEFAULT_MIN_SQNR_DB, QuantizeAutoOptions
from edgesmith_quantization.quantize_auto import QuantizeAuto
from edgesmith_quantization.search import sensitivity
from edgesmith_quantization.search.formats import FORMATS, compose
from small_graphs import graph, node, operators, run, sqnr

ACCURACY = Scoring("accuracy", Accuracy)
WIDTH = 64


class FakeTrial:
    """Times nothing: the speed of a model follows from its operators, by a rule that the test makes up."""

    measures_latency = True

    def __init__(self, cost):
        self.cost, self.asked = cost, []

    def lower(self, model):
        return model

    def speedups(self, models, baseline, *, max_seconds=30.0):
        self.asked.append(len(models))
        start = self.cost(operators(baseline))
        ratios = [start / self.cost(operators(model)) for model in models]
        return tuple(
            Measurement(value=r, unit="x", tier=Tier.SIMULATED, samples=9, low=0.99 * r, high=1.01 * r) for r in ratios
        )


def outlier_chain(layers=3, *, outlier=1):
    """Return products in a row, one of which works on samples of very different size.

    Samples are scaled by up to e^10 before that product, and back after it. With one scale for all samples, its 8-bit
    code leaves nothing of the small ones, and no scale per channel can mend that.
    """
    generator = np.random.default_rng(0)
    arrays = {"axis": np.array([1]), "steep": np.float32(40.0)}
    nodes = [
        node("ReduceMean", ["x", "axis"], "mean"),
        node("Mul", ["mean", "steep"], "log"),
        node("Exp", ["log"], "g"),
    ]
    value = "x"
    for index in range(layers):
        arrays[f"w{index}"] = generator.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32)
        uneven = index == outlier
        nodes += [node("Mul", [value, "g"], "uneven")] if uneven else []
        nodes.append(node("MatMul", ["uneven" if uneven else value, f"w{index}"], f"h{index}"))
        nodes += [node("Div", [f"h{index}", "g"], "even")] if uneven else []
        value = "even" if uneven else f"h{index}"
    nodes.append(node("Tanh", [value], "y"))
    return graph(nodes, arrays, {"x": ["n", WIDTH]})


def samples(count=40, seed=0):
    return {"x": np.random.default_rng(seed).normal(0, 1, (count, WIDTH)).astype(np.float32)}


def auto_context(arrays, dialect=DIALECT, *, labels=None, trial=None, scoring=None, **options):
    source = None if arrays is None else ArraySource(arrays, labels)
    return Context(
        options=QuantizeAutoOptions(**options),
        dialect=dialect,
        scratch=Path(tempfile.mkdtemp()),
        calibration=source,
        trial=trial,
        scoring=scoring,
    )


def quantized_products(model):
    """Return the names of products whose weight is stored in integers."""
    found = set()
    for each in model.graph:
        weight = each.inputs[1].producer() if each.op_type == "MatMul" else None
        if weight is not None and weight.op_type == "DequantizeLinear":
            found.add(each.name)
        if each.op_type == "MatMulInteger":
            found.add(each.name.removesuffix("_MatMulInteger"))
    return found


def test_the_layer_with_outliers_stays_in_float_and_the_budget_holds_on_other_data():
    model = outlier_chain()
    context = auto_context(samples(), formats=("int8",), min_sqnr_db=12.0)
    result = QuantizeAuto().apply(model, context)
    assert quantized_products(result) == {"node_h0", "node_h2"}
    assert list(context.notes.skipped) == ["node_h1"] and "it alone in int8 leaves" in context.notes.skipped["node_h1"]
    assert any("Within the budget" in remark for remark in context.notes.remarks)
    fresh = samples(seed=7)
    uniform = compose(model, {"int8": ["node_h0", "node_h1", "node_h2"]}, context)
    assert sqnr(run(model, fresh)["y"], run(uniform, fresh)["y"]) < 6
    # Held-out samples and fresh ones differ by sampling; 20 samples of 64 outputs leave well under 3 dB of it.
    assert sqnr(run(model, fresh)["y"], run(result, fresh)["y"]) > 9


def test_a_budget_that_nothing_keeps_gives_float_and_one_that_all_keep_gives_everything():
    model = outlier_chain(outlier=None)
    strict = QuantizeAuto().apply(model, auto_context(samples(), formats=("int8",), min_sqnr_db=200.0))
    assert strict.digest() == model.digest() and strict is not model
    loose = QuantizeAuto().apply(model, auto_context(samples(), formats=("int8",), min_sqnr_db=0.0))
    assert quantized_products(loose) == {"node_h0", "node_h1", "node_h2"}


def test_without_a_named_budget_the_default_holds():
    assert QuantizeAutoOptions().least_sqnr_db == DEFAULT_MIN_SQNR_DB
    assert QuantizeAutoOptions(max_metric_drop=1).least_sqnr_db is None
    assert QuantizeAutoOptions(max_bits_per_weight=4, min_sqnr_db=9).least_sqnr_db == 9


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([20.0, 30.0, 36.0]))
def test_the_result_keeps_the_budget_on_its_held_out_samples(seed, least):
    """Whatever the weights: float always keeps a budget of output error, so the budget is never missed."""
    generator = np.random.default_rng(seed)
    arrays = {f"w{i}": generator.standard_t(3, (WIDTH, WIDTH)).astype(np.float32) / 8 for i in range(3)}
    nodes = [node("MatMul", ["x", "w0"], "a"), node("Relu", ["a"], "r"), node("MatMul", ["r", "w1"], "b")]
    model = graph([*nodes, node("MatMul", ["b", "w2"], "y")], arrays, {"x": ["n", WIDTH]})
    context = auto_context(samples(seed=seed), min_sqnr_db=least)
    result = QuantizeAuto().apply(model, context)
    assert any("Within the budget" in remark for remark in context.notes.remarks)
    from edgesmith_calibration.sources import split

    _, held_out = split(ArraySource(samples(seed=seed)), 20, seed=0)
    (batch,) = held_out.batches(100)
    outputs = [[run(one, {"x": row[np.newaxis]}, "all")["y"] for row in batch.inputs["x"]] for one in (model, result)]
    assert sqnr(np.array(outputs[0]), np.array(outputs[1])) >= least - 1e-6


def test_bits_are_kept_and_spent_where_they_count():
    """Two layers of equal size, one of which hardly reaches the output: that one is quantized."""
    generator = np.random.default_rng(0)
    arrays = {name: generator.normal(0, 0.25, (64, 64)).astype(np.float32) for name in ("loud", "quiet")}
    arrays["faint"] = np.float32(1e-3)
    nodes = [
        node("MatMul", ["x", "loud"], "a"),
        node("Abs", ["x"], "z"),
        node("MatMul", ["z", "quiet"], "b"),
        node("Mul", ["b", "faint"], "c"),
        node("Add", ["a", "c"], "y"),
    ]
    model = graph(nodes, arrays, {"x": ["n", 64]})
    data = {"x": generator.normal(0, 1, (40, 64)).astype(np.float32)}
    context = auto_context(data, formats=("int8",), max_bits_per_weight=22.0)
    result = QuantizeAuto().apply(model, context)
    assert quantized_products(result) == {"node_b"}
    assert 20.0 < WeightBits.of(model.ir).per_weight(result.ir) <= 22.0
    assert WeightBits.of(model.ir).per_weight(model.ir) == 32.0


def test_a_miss_says_how_far_it_is_from_the_budget():
    model = outlier_chain(outlier=None)
    context = auto_context(samples(), max_bits_per_weight=2.0)
    QuantizeAuto().apply(model, context)
    told = next(remark for remark in context.notes.remarks if "Budget missed" in remark)
    assert "more than 2" in told
    assert len(context.notes.missed) == 1
    assert context.notes.missed[0] in told
    assert any("No assignment reaches 2 bits" in remark for remark in context.notes.remarks)


def labelled_classifier():
    generator = np.random.default_rng(3)
    arrays = {"w0": generator.normal(0, 0.125, (WIDTH, WIDTH)).astype(np.float32)}
    arrays["w1"] = generator.normal(0, 0.25, (WIDTH, 4)).astype(np.float32)
    nodes = [node("MatMul", ["x", "w0"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w1"], "y")]
    model = graph(nodes, arrays, {"x": ["n", WIDTH]})
    data = samples(64)
    return model, data, run(model, data)["y"].argmax(axis=1)


def test_a_budget_of_the_metric_is_measured_on_labels():
    model, data, labels = labelled_classifier()
    context = auto_context(data, labels=labels, scoring=ACCURACY, max_metric_drop=5.0)
    result = QuantizeAuto().apply(model, context)
    assert quantized_products(result)
    told = " ".join(context.notes.remarks)
    assert "Within the budget" in told and "metric" in told and "32 held-out" in told


def test_what_is_slower_than_float_is_not_used():
    model = outlier_chain(outlier=None)
    trial = FakeTrial(lambda counts: 10 + counts["DequantizeLinear"] + counts["MatMulInteger"])
    context = auto_context(samples(), trial=trial)
    result = QuantizeAuto().apply(model, context)
    assert result.digest() == model.digest()
    assert any("slower than float" in remark for remark in context.notes.remarks)


def two_kinds():
    generator = np.random.default_rng(0)
    shapes = {"wide0": (64, 128), "wide1": (128, 64), "small0": (64, 64), "small1": (64, 64)}
    arrays = {name: generator.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes, value = [], "x"
    for name in shapes:
        nodes.append(node("MatMul", [value, name], f"h_{name}"))
        value = f"h_{name}"
    nodes.append(node("Tanh", [value], "y"))
    return graph(nodes, arrays, {"x": ["n", WIDTH]})


def test_kinds_of_layers_that_do_not_pay_go_back_to_float():
    """The made-up machine gains from wide products and loses more than that on each small one it quantizes."""

    class UnevenTrial(FakeTrial):
        def speedups(self, models, baseline, *, max_seconds=30.0):
            def cost(model):
                quantized = quantized_products(model)
                return 20 - 6 * sum("wide" in name for name in quantized) + sum("small" in name for name in quantized)

            ratios = [cost(baseline) / cost(model) for model in models]
            return tuple(Measurement(value=r, unit="x", tier=Tier.SIMULATED, samples=9, low=r, high=r) for r in ratios)

    model = two_kinds()
    context = auto_context(samples(), formats=("int8",), trial=UnevenTrial(None), min_sqnr_db=5.0)
    result = QuantizeAuto().apply(model, context)
    assert quantized_products(result) == {"node_h_wide0", "node_h_wide1"}
    assert any("Back in float" in remark and "MatMul 64x64" in remark for remark in context.notes.remarks)


def test_a_variant_that_the_target_refuses_does_not_end_the_search():
    class PickyTrial(FakeTrial):
        def lower(self, model):
            if quantized_products(model) and "node_h_small0" not in quantized_products(model):
                raise TargetError("small products must be quantized", expected="", why="", fix="")
            return model

    trial = PickyTrial(lambda counts: 20 - counts["DequantizeLinear"])
    context = auto_context(samples(), formats=("int8",), trial=trial, min_sqnr_db=5.0)
    result = QuantizeAuto().apply(two_kinds(), context)
    assert {"node_h_small0", "node_h_wide0"} <= quantized_products(result)
    assert any("was not timed: small products must be quantized" in remark for remark in context.notes.remarks)


def test_tables_are_stored_small_in_a_format_that_is_slow_for_products():
    """The made-up machine is twice as fast with dynamic integers, and ten times slower with packed products."""

    def cost(counts):
        return 10 - 5 * (counts["MatMulInteger"] > 0) + 90 * (counts["MatMul"] > 0 and counts["DequantizeLinear"] > 1)

    generator = np.random.default_rng(0)
    arrays = {"table": generator.normal(0, 1, (200, WIDTH)).astype(np.float32)}
    arrays["w"] = generator.normal(0, 0.125, (WIDTH, WIDTH)).astype(np.float32)
    nodes = [node("Gather", ["table", "ids"], "h"), node("MatMul", ["h", "w"], "y")]
    model = graph(nodes, arrays, {"ids": ["n", 4]}, types={"ids": ir.DataType.INT64})
    ids = {"ids": generator.integers(0, 200, (40, 4))}
    formats = ("int8-dynamic", "int8-weights")
    context = auto_context(ids, formats=formats, trial=FakeTrial(cost), min_sqnr_db=25.0)
    result = QuantizeAuto().apply(model, context)
    assert operators(result)["MatMulInteger"] == 1 and operators(result)["DequantizeLinear"] == 1
    assert WeightBits.of(model.ir).per_weight(result.ir) < 10.5
    assert context.notes.skipped == {}


def test_size_as_the_objective_does_not_ask_for_times():
    model = outlier_chain(outlier=None)
    slow = FakeTrial(lambda counts: 10 + counts["DequantizeLinear"] + counts["MatMulInteger"])
    result = QuantizeAuto().apply(model, auto_context(samples(), trial=slow, objective="size"))
    assert len(quantized_products(result)) == 3


def test_a_trial_without_times_is_not_timed():
    trial = FakeTrial(lambda counts: 1.0)
    trial.measures_latency = False
    QuantizeAuto().apply(outlier_chain(), auto_context(samples(), trial=trial))
    assert trial.asked == []


def test_when_the_time_is_over_the_best_so_far_is_returned(monkeypatch):
    """A clock that jumps: after the formats were tried there is no time left for single layers."""
    ticks = itertools.count(0.0, 100.0)
    monkeypatch.setattr(sensitivity.time, "monotonic", lambda: next(ticks))
    model = outlier_chain(outlier=None)
    context = auto_context(samples(), formats=("int8", "int8-weights"), min_sqnr_db=5.0, time_budget_s=50.0)
    result = QuantizeAuto().apply(model, context)
    assert quantized_products(result) == {"node_h0", "node_h1", "node_h2"}
    assert "There was no time to try int8-weights." in context.notes.remarks
    assert not any("one at a time" in remark for remark in context.notes.remarks)


def test_equal_data_gives_equal_bytes():
    model = outlier_chain()
    first, second = (QuantizeAuto().apply(model, auto_context(samples(), min_sqnr_db=30.0)) for _ in range(2))
    assert first.digest() == second.digest()


def test_the_input_is_not_edited():
    model = outlier_chain()
    digest = model.digest()
    QuantizeAuto().apply(model, auto_context(samples()))
    assert model.digest() == digest


@pytest.mark.parametrize("fixture", ["tiny_bert", "tiny_cnn"])
def test_whole_models(fixture, request):
    from edgesmith.execution.sample import sample_inputs

    model = request.getfixturevalue(fixture)
    drawn = [sample_inputs(model.ir, seed=seed, dimensions=None) for seed in range(4)]
    data = {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}
    context = auto_context(data, formats=("int8-dynamic",), min_sqnr_db=20.0)
    result = QuantizeAuto().apply(model, context)
    inputs = drawn[0]
    expected, actual = run(model, inputs), run(result, inputs)
    assert result.digest() != model.digest()
    assert any("Within the budget" in remark for remark in context.notes.remarks)
    # The first sample may have served for ranges; it shows that the result computes the same thing.
    assert all(sqnr(expected[name], actual[name]) > 12 for name in expected)


def test_a_selection_is_handed_on_to_every_format():
    context = auto_context(samples(), skip=("node_h0",), min_sqnr_db=0.0)
    result = QuantizeAuto().apply(outlier_chain(), context)
    assert quantized_products(result) == {"node_h1", "node_h2"}
    verdict = QuantizeAuto().check(outlier_chain(), auto_context(samples(), only=("node_h2",)))
    assert verdict.nodes == ("node_h2",)


def test_names_that_look_like_patterns_are_taken_as_they_are():
    model = outlier_chain(outlier=None)
    for index, each in enumerate(model.graph):
        each.name = f"layer[{index}]*?"
    context = auto_context(samples(), formats=("int8",), min_sqnr_db=0.0)
    assert len(quantized_products(QuantizeAuto().apply(model, context))) == 3


def test_check_refuses_with_words_that_help():
    model, data, labels = labelled_classifier()

    def reason(arrays, **options):
        verdict = QuantizeAuto().check(model, auto_context(arrays, **options))
        assert verdict.status == "refuse"
        return verdict.reason

    assert "--data" in reason(None)
    assert "at least 2" in reason(samples(1))
    assert "labels" in reason(data, max_metric_drop=0.5)
    compared = Scoring("sqnr", Sqnr, needs_labels=False)
    assert "sqnr" in reason(data, labels=labels, scoring=compared, max_metric_drop=0.5)
    assert "no node matches" in reason(data, skip=("nowhere",))


def test_a_graph_or_target_without_candidates_is_skipped_with_reasons():
    bare = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", WIDTH]})
    verdict = QuantizeAuto().check(bare, auto_context(samples()))
    assert verdict.status == "skip" and "int8:" in verdict.reason
    with pytest.raises(StepError, match="no format"):
        QuantizeAuto().apply(bare, auto_context(samples()))
    with pytest.raises(DataError, match="not enough"):
        QuantizeAuto().apply(outlier_chain(), auto_context(None))


def test_a_dialect_without_dynamic_ranges_leaves_that_format_out():
    form = TensorFormat("int8", symmetric=True)
    plain = Dialect("plain", 20, form, replace(form, granularity="channel"), frozenset({"MatMul"}))
    context = auto_context(samples(), plain, min_sqnr_db=0.0)
    result = QuantizeAuto().apply(outlier_chain(outlier=None), context)
    assert len(quantized_products(result)) == 3
    assert not any("int8-dynamic" in remark for remark in context.notes.remarks)


def test_every_format_offered_is_one_that_there_is():
    offered = QuantizeAutoOptions.model_json_schema()["properties"]["formats"]["items"]["enum"]
    assert offered == [each.name for each in FORMATS]
