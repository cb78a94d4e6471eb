"""A decoder that lost blocks, and their slots of the cache, learns from one that has them all."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tests.folding.cached_models import BLOCKS, cached_decoder, data_for, decode, logits_of
from tests.folding.folding_models import remove_with_notes
from tests.pipeline.test_robustness import settings
from tests.recovery.recovery_models import context_for, with_weights

import edgesmith
from edgesmith.data import RunData, fitted
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cache import find_caches
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith_calibration.sources import ArraySource
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.reconstruction.distance import output_error
from edgesmith_recovery.recover import Recover
from edgesmith_recovery.training.distillation import make_goal

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3, "labels_weight": 0.0}
# As in the tests of folding: sums of float32 in another order.
ROUNDING = 1e-4


def given_caches(model: Model, count: int, length: int) -> dict[str, np.ndarray]:
    """Return samples in the middle of a text: keys and values of `length` tokens, and new tokens."""
    samples = data_for(model, count, 6)
    earlier = data_for(model, count, length, seed=1)
    found = ReferenceSession(model.ir).run(earlier)
    return samples | {cache.input.name: found[cache.output.name] for cache in find_caches(model.ir)}


def recover(
    source: Model, student: Model, samples: Mapping[str, np.ndarray], **options: object
) -> tuple[Model, float, list[str]]:
    """Return the recovered model, how far its outputs are from the source's on the samples, and the remarks."""
    data = ArraySource(samples)
    context = context_for(source, samples, **TRAINING | options)
    context = replace(context, calibration=fitted(data, student), source_calibration=data)
    assert Recover().check(student, context).status == "ok"
    result = Recover().apply(student, context)
    return result, output_error(result.ir, source.ir, data, None, batch_size=8, threads=1), context.notes.remarks


@pytest.mark.parametrize(
    ("how", "form"),
    [("distill", "apart"), ("blocks", "apart"), ("closed-form", "apart"), ("distill", "tokens first")],
)
def test_a_decoder_without_some_slots_learns_from_its_source(how, form):
    source = cached_decoder(form=form)
    samples = given_caches(source, 32, 5)
    student, _ = remove_with_notes(source, blocks=(1,), compensation="none")
    before = output_error(student.ir, source.ir, ArraySource(samples), None, batch_size=8, threads=1)
    result, after, _ = recover(source, student, samples, how=how)
    assert after < 0.97 * before
    assert [value.name for value in result.graph.inputs] == [value.name for value in student.graph.inputs]
    assert [value.name for value in result.graph.outputs] == [value.name for value in student.graph.outputs]
    tokens = samples["input_ids"][:2]
    np.testing.assert_allclose(decode(result, tokens, (3, 1, 2)), logits_of(result, tokens), atol=ROUNDING)


def test_samples_are_selected_by_what_a_decoder_lost_with_its_slots():
    source = cached_decoder()
    student, _ = remove_with_notes(source, blocks=(1,), compensation="none")
    samples = given_caches(source, 32, 5)
    before = output_error(student.ir, source.ir, ArraySource(samples), None, batch_size=8, threads=1)
    _, after, remarks = recover(source, student, samples, select="paser", select_share=0.5, clusters=2, epochs=4)
    assert after < before
    # Of 32 samples 3 are held out.
    assert any(remark.startswith("Chose 14 of 29 samples from 2 kinds") for remark in remarks)


def test_keys_and_values_count_only_where_they_are_asked_for():
    model = cached_decoder()
    structure = find_structure(model.ir)
    plain, with_caches = (
        make_goal(model.graph, structure, (), RecoverOptions(caches=caches), has_labels=False)
        for caches in (False, True)
    )
    assert set(plain.outputs) == {"logits"}
    assert set(with_caches.outputs) == {value.name for value in model.graph.outputs}


def test_an_output_that_is_missing_and_no_slot_is_still_refused():
    source = cached_decoder()
    student, _ = remove_with_notes(source, blocks=(1,), compensation="none")
    for value in (student.graph.outputs[0], find_caches(student.ir)[0].output):
        broken = student.clone()
        broken.graph.outputs.remove(next(each for each in broken.graph.outputs if each.name == value.name))
        verdict = Recover().check(broken, context_for(source, data_for(source)))
        assert verdict.status == "refuse" and "not those of the source" in verdict.reason


def test_a_recipe_folds_cures_and_quantizes_a_decoder_with_a_cache(tmp_path: Path):
    source = cached_decoder()
    tokens = [{"input_ids": data_for(source, count, seed=count)["input_ids"]} for count in (32, 16)]
    steps = [
        {"method": "remove-blocks", "options": {"blocks": [1], "compensation": "none"}},
        {"method": "recover", "options": TRAINING | {"epochs": 4}},
        {"method": "quantize-int8", "options": {"mode": "static"}},
    ]
    artifact = edgesmith.compile(
        source,
        out=tmp_path / "artifact",
        recipe={"steps": steps},
        data=RunData(*(ArraySource(one) for one in tokens)),
        settings=settings(tmp_path),
    )
    errors = {
        row.stage: error.sqnr_db for row in artifact.ledger.rows for error in row.errors if error.against == "source"
    }
    assert errors["recover"] > errors["remove-blocks"] + 0.5
    small = Model(ir.load(artifact.entry), source.task, source.provenance)
    assert len(find_caches(small.ir)) == 2 * (BLOCKS - 1)
    few = tokens[1]["input_ids"][:2]
    np.testing.assert_allclose(decode(small, few, (3, 1, 8)), logits_of(small, few), atol=ROUNDING)


def choosing(model: Model) -> Model:
    """Return a decoder that hands out the likeliest token instead of logits: all its float outputs are caches."""
    copy = model.clone()
    place = next(i for i, value in enumerate(copy.graph.outputs) if value.name == "logits")
    token = ir.Value(name="token", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "sequence"]))
    attributes = {"axis": ir.AttrInt64("axis", -1), "keepdims": ir.AttrInt64("keepdims", 0)}
    copy.graph.append(ir.Node("", "ArgMax", [copy.graph.outputs[place]], attributes, outputs=[token]))
    copy.graph.outputs[place] = token
    return copy


@pytest.mark.parametrize(
    "options",
    [{"blocks": "none"}, {"how": "blocks"}, {"how": "closed-form"}, {"select": "paser", "select_share": 0.5}],
    ids=str,
)
def test_caches_count_where_a_decoder_hands_out_nothing_else_to_compare(options):
    source = choosing(cached_decoder())
    student, _ = remove_with_notes(source, blocks=(1,), compensation="none")
    samples = given_caches(source, 32, 5)
    before = output_error(student.ir, source.ir, ArraySource(samples), None, batch_size=8, threads=1)
    _, after, _ = recover(source, student, samples, **options)
    assert 0 < after < before


@pytest.mark.parametrize("options", [{"blocks": "none"}, {"how": "blocks"}, {"how": "closed-form"}], ids=str)
def test_a_graph_without_any_float_output_is_refused_where_outputs_decide(options):
    source = choosing(cached_decoder())
    for value in [value for value in source.graph.outputs if value.name != "token"]:
        source.graph.outputs.remove(value)
    student = with_weights(source, lambda _, array: array * 1.1)
    context = context_for(source, data_for(source), **TRAINING | options)
    verdict = Recover().check(student, context)
    assert verdict.status == "refuse" and "no output is a float" in verdict.reason


@pytest.mark.parametrize("how", ["distill", "closed-form"])
def test_samples_without_the_slots_that_a_step_took_are_refused_with_their_names(how):
    source = cached_decoder()
    student, _ = remove_with_notes(source, blocks=(1,), compensation="none")
    names = {value.name for value in student.graph.inputs}
    kept = {name: array for name, array in given_caches(source, 16, 5).items() if name in names}
    verdict = Recover().check(student, context_for(source, kept, **TRAINING | {"how": how}))
    assert verdict.status == "refuse" and "the samples lack in2, in3 of the source's inputs" in verdict.reason
