"""Maps that are trained: rows sum to 1, outputs come closer, and what is written is one constant."""

import dataclasses

import numpy as np
import pytest
from tests.small_graphs import context, operators, run
from tests.tokens.static_networks import images, make_static, make_static_with_notes, network, sites_of, with_classes

from edgesmith.errors import EdgesmithError
from edgesmith.graph.edit import GraphEditor
from edgesmith.graph.structure import find_structure
from edgesmith_calibration.sources import ArraySource
from edgesmith_tokens.options.static import StaticAttentionOptions
from edgesmith_tokens.static.measure import StaticMap
from edgesmith_tokens.static.rewrite import replace_attention
from edgesmith_tokens.static.training import train_maps, with_logits
from edgesmith_tokens.static_attention import StaticAttention

TRAINED = {"blocks": (0, 1), "epochs": 12, "batch_size": 4, "learning_rate": 0.1, "guidance": 0.0}


def maps_of(model):
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if name.endswith(".static_map")
    }


def output_error(model, static, data):
    (before,), (after,) = run(model, data).values(), run(static, data).values()
    return float(np.linalg.norm(before - after) / np.linalg.norm(before))


def trained_from_uniform(model, data, labels=None, **options):
    """Return the model with uniform maps, the same after training, and what was reported."""
    start = model.clone()
    editor, maps = GraphEditor(start.graph), {}
    for site in sites_of(model):
        uniform = np.full((site.heads, site.tokens, site.tokens), 1 / site.tokens)
        name = replace_attention(editor, site, uniform)
        maps[name] = StaticMap(site, uniform, None, "mean", 1.0, {}, uniform)
    settings = context(StaticAttentionOptions(**{**TRAINED, **options}))
    source = ArraySource(data, labels=labels)
    result = start.clone()
    last = find_structure(model.ir).blocks[-1].output
    remark = train_maps(model.ir, result.ir, maps, last, dataclasses.replace(settings, calibration=source))
    return start, result, remark


def test_training_finds_constant_maps_from_uniform_ones_and_writes_constants():
    model = network(constant=True)
    unseen = images(model, 64, seed=7)
    start, trained, remark = trained_from_uniform(model, images(model, 64))
    assert output_error(model, trained, unseen) < 0.25 * output_error(model, start, unseen)
    assert remark.startswith("Trained the maps for 144 steps")
    assert operators(trained) == operators(start) and operators(trained)["Softmax"] == 0
    for array in maps_of(trained).values():
        assert array.dtype == np.float32 and array.shape == (1, 2, 5, 5)
        np.testing.assert_allclose(array.sum(-1), 1.0, atol=1e-6)


def test_strong_guidance_keeps_maps_at_their_means():
    model = network(constant=True)
    data = images(model, 40)
    far, near = (
        sum(
            np.abs(array - 0.2).sum() for array in maps_of(trained_from_uniform(model, data, guidance=each)[1]).values()
        )
        for each in (0.0, 100.0)
    )
    assert near < 0.5 * far


def test_labels_count_where_there_are_some():
    model = network(constant=True)
    data, labels = images(model, 24), np.random.default_rng(0).integers(0, 5, 24)
    # The output [batch, 5, 8] is read as 5 classes at 8 places.
    labels = np.tile(labels[:, None], (1, 8))
    plain, weighted, ignored = (
        maps_of(trained_from_uniform(model, data, given, labels_weight=weight)[1])
        for given, weight in ((labels, 0.0), (labels, 1.0), (None, 1.0))
    )
    assert all(np.array_equal(array, ignored[name]) for name, array in plain.items())
    assert any(np.abs(array - weighted[name]).max() > 1e-4 for name, array in plain.items())


def test_class_numbers_among_the_outputs_do_not_count_as_features_or_scores():
    model = network(constant=True)
    data, labels = images(model, 24), np.tile(np.random.default_rng(0).integers(0, 5, (24, 1)), (1, 8))
    graph = with_classes(model)
    expected, found = (trained_from_uniform(each, data, labels, labels_weight=0.5) for each in (model, graph))
    assert found[2] == expected[2]
    for name, array in maps_of(expected[1]).items():
        assert np.array_equal(array, maps_of(found[1])[name])


def test_the_method_trains_and_never_ends_worse_on_what_it_decides_by():
    model = network(seed=3)
    data = images(model, 64)
    trained, notes = make_static_with_notes(model, data, **{**TRAINED, "epochs": 3, "learning_rate": 0.01})
    before, after = (float(word.rstrip(".")) for word in notes.remarks[-1].split("went from ")[1].split(" to "))
    assert after <= before
    assert operators(trained) == operators(make_static(model, data, blocks=(0, 1), form="mean"))


def test_training_repeats_bit_for_bit():
    model = network(blocks=1)
    options = {**TRAINED, "blocks": (0,), "epochs": 2}
    first, second = (maps_of(make_static(model, images(model), **options)) for _ in range(2))
    assert first.keys() == second.keys() and all(np.array_equal(array, second[name]) for name, array in first.items())


def test_a_graph_with_logits_computes_what_the_maps_do():
    model = network()
    data = images(model)
    static = make_static(model, data, blocks=(0, 1), form="mean")
    student, logits = with_logits(static.ir, list(maps_of(static)))
    assert set(logits) == set(maps_of(static)) and not set(logits) & set(student.graph.initializers)
    for name, array in run(static.with_ir(student), data).items():
        np.testing.assert_allclose(array, run(static, data)[name], atol=1e-5)


def test_training_is_refused_with_too_few_samples():
    model = network(batch=4)
    options = StaticAttentionOptions(epochs=1, blocks=(0,))
    verdict = StaticAttention().check(model, context(options, images(model, 4)))
    assert verdict.status == "refuse" and "training takes 8 samples" in verdict.reason
    assert not sites_of(model)[0].obstacle
    with pytest.raises(EdgesmithError):
        StaticAttention().apply(model, context(options, None))
