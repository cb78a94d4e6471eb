"""What a decoder hands out for its cache does not tell how good it is, where its logits do."""

import numpy as np
import onnx_ir as ir
import pytest

import edgesmith
from edgesmith.data import RunData
from edgesmith.graph.cache import find_caches
from edgesmith.graph.outputs import passed_over
from edgesmith.model import Model
from edgesmith_calibration.sources import ArraySource
from tests.folding.cached_models import cached_decoder, data_for, logits_of
from tests.pipeline.test_robustness import settings

STEPS = [{"method": "remove-blocks", "options": {"blocks": [1], "compensation": "none"}}]


def test_the_distance_of_a_decoder_is_that_of_its_logits(tmp_path):
    source = cached_decoder()
    calibration, evaluation = (data_for(source, 8, seed=seed) for seed in (1, 2))
    data = RunData(ArraySource(calibration), ArraySource(evaluation))
    ledger = edgesmith.compile(
        source, out=tmp_path / "artifact", recipe={"steps": STEPS}, data=data, settings=settings(tmp_path)
    ).ledger
    small = Model(ir.load(tmp_path / "artifact" / "model.onnx"), source.task, source.provenance)
    expected, actual = (logits_of(model, evaluation["input_ids"]).astype(np.float64) for model in (source, small))
    decibels = 10 * np.log10(np.square(expected).sum() / np.square(expected - actual).sum())
    row = ledger.rows[-1]
    assert row.metric.value == pytest.approx(decibels, abs=0.01)
    (error,) = [one for one in row.errors if one.against == "source"]
    assert error.sqnr_db == pytest.approx(decibels, abs=0.01)


def test_keys_and_values_are_passed_over_only_beside_another_answer():
    model = cached_decoder().ir
    slots = {cache.output.name for cache in find_caches(model)}
    assert slots and passed_over(model.graph) == slots
    for output in [one for one in model.graph.outputs if one.name == "logits"]:
        model.graph.outputs.remove(output)
    assert passed_over(model.graph) == frozenset()
