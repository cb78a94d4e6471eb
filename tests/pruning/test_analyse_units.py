"""analyse-units: planted roles are found, shares and statistics are right, and what is protected stays."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgesmith_pruning
from edgesmith.execution.reference import ReferenceSession
from edgesmith.host.context import Context
from edgesmith.model import Model, Provenance
from edgesmith.progress import SilentProgress
from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith.task import Task
from edgesmith.testing import isolated_registry, run_recipe
from edgesmith.testing.builder import GraphBuilder
from edgesmith.testing.data import tiny_data
from edgesmith_calibration.sources import ArraySource
from edgesmith_pruning.analyse_units import AnalyseUnits
from edgesmith_pruning.finding.units import find_units
from edgesmith_pruning.options.structure import PruneStructureOptions
from edgesmith_pruning.options.units import AnalyseUnitsOptions
from edgesmith_pruning.options.weights import PruneWeightsOptions
from edgesmith_pruning.prune_structure import PruneStructure
from edgesmith_pruning.prune_weights import PruneWeights
from edgesmith_pruning.roles.ablation import divergence, prepare, random_groups
from edgesmith_pruning.roles.assignment import Shares, assign_roles, atom_scores, first_until, most_mixed, standardized
from edgesmith_pruning.roles.record import UNITS_ASSET, UnitRoles
from edgesmith_pruning.roles.statistics import measure
from small_graphs import SIGNED

PLANTED = ["attribute"] * 4 + ["utility"] * 4 + ["redundant"] * 2


def two_tasks(idle=2) -> Model:
    """Return an MLP: channels 0 to 3 read inputs of task A, 4 to 7 those of task B, the others hardly anything."""
    generator = np.random.default_rng(0)
    up, down = np.zeros((8, 8 + idle), np.float32), generator.normal(size=(8 + idle, 4)).astype(np.float32)
    up[:4, :4] = up[4:, 4:8] = np.eye(4)
    up[:, 8:] = 0.01
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    builder = GraphBuilder(x=("n", 8))
    hidden = builder.add("Relu", builder.add("MatMul", "x", builder.constant("up", up)))
    made = builder.add("MatMul", hidden, builder.constant("down", down), name="down_product")
    return Model(builder.finish(made), Task(), Provenance("toy", "onnx", "toy"))


def task_data(samples=80, seed=0) -> ArraySource:
    """Return samples of task A (label 0) and of task B (label 1); each moves its own four inputs alone."""
    generator = np.random.default_rng(seed)
    labels = np.arange(samples) % 2
    active = np.repeat(np.stack([labels == 0, labels == 1], 1), 4, axis=1)
    return ArraySource({"x": (generator.normal(size=(samples, 8)) * active).astype(np.float32)}, labels)


def context_of(data, folder: Path, seed=3, **options):
    return Context(AnalyseUnitsOptions(**options), SIGNED, folder, data, seed=seed)


def analyse(model, context) -> tuple[Model, UnitRoles]:
    verdict = AnalyseUnits().check(model, context)
    assert verdict.status == "ok", verdict.reason
    result = AnalyseUnits().apply(model, context)
    return result, UnitRoles.model_validate_json(result.assets[UNITS_ASSET])


PLANTED_SHARES = {"redundant_share": 0.2, "attribute_share": 0.4, "utility_share": 0.4}


def test_planted_roles_are_found(tmp_path):
    context = context_of(task_data(), tmp_path, attribute_labels=[0], **PLANTED_SHARES)
    result, found = analyse(two_tasks(), context)
    (group,) = found.groups
    assert list(group.roles) == PLANTED
    assert found.shares == pytest.approx({"attribute": 0.4, "utility": 0.4, "redundant": 0.2, "mixed": 0})
    # Eight inputs above and four outputs below each channel.
    assert set(group.parameters) == {12}
    protection = Protection.model_validate_json(result.assets[PROTECTION_ASSET])
    assert protection.places("up", 1, 10) == protection.places("down", 0, 10) == {0, 1, 2, 3}
    assert protection.model == found.model == two_tasks().digest()


def test_swapped_slices_swap_roles(tmp_path):
    first, second = (
        analyse(two_tasks(), context_of(task_data(), tmp_path, attribute_labels=[label], **PLANTED_SHARES))[1]
        for label in (0, 1)
    )
    swap = {"attribute": "utility", "utility": "attribute"}
    assert [swap.get(role, role) for role in first.groups[0].roles] == list(second.groups[0].roles)
    assert first.groups[0].attribute == second.groups[0].utility


def test_the_graph_is_not_changed(tmp_path, tiny_bert):
    context = context_of(tiny_data(tiny_bert, samples=24), tmp_path, attribute_labels=[0], ablations=1)
    before = tiny_bert.digest()
    result, _ = analyse(tiny_bert, context)
    assert tiny_bert.digest() == before
    assert result.ir is not tiny_bert.ir
    assert Model(result.ir, result.task, result.provenance, tiny_bert.assets).digest() == before


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_vit"])
def test_roles_partition_units_and_shares_match_within_one_unit(name, request, tmp_path):
    model = request.getfixturevalue(name)
    options = {"redundant_share": 0.2, "attribute_share": 0.1, "utility_share": 0.1}
    data = tiny_data(model, samples=24)
    _, found = analyse(model, context_of(data, tmp_path, attribute_labels=[0], **options))
    units = {unit.name: unit for unit in find_units(model.ir) if unit.kind in ("heads", "channels")}
    assert {group.layer: len(group.roles) for group in found.groups} == {
        name: unit.size for name, unit in units.items()
    }
    assert sum(found.shares.values()) == pytest.approx(1)
    costs = np.concatenate([group.parameters for group in found.groups])
    # A later role may take units from an earlier one, so only the last two are held to their share.
    for role in ("attribute", "utility"):
        assert abs(found.shares[role] - 0.1) * costs.sum() <= costs.max()
    assert found.shares["redundant"] * costs.sum() <= 0.2 * costs.sum() + costs.max()


def test_streamed_variance_equals_numpy(tiny_bert):
    units = [unit for unit in find_units(tiny_bert.ir) if unit.kind in ("heads", "channels")]
    sources = sorted({consumer.source for unit in units for consumer in unit.consumers})
    data = tiny_data(tiny_bert, samples=11)
    streamed = measure(tiny_bert.ir, units, data, batch_size=3, threads=1, progress=SilentProgress())
    (batch,) = data.batches(11)
    values = ReferenceSession(tiny_bert.ir, taps=sources, optimization="all").run(batch.inputs)
    for source in sources:
        rows = values[source].reshape(-1, values[source].shape[-1]).astype(np.float64)
        # Batches of three run other kernels than one of eleven, which float32 shows in its last digits.
        np.testing.assert_allclose(streamed.variance[source], rows.var(axis=0), rtol=1e-5)
        np.testing.assert_allclose(streamed.mean[source], rows.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_ablations_tell_planted_roles_from_random_groups(tmp_path):
    # Of 32 channels, so that random groups of four rarely hold much of what was planted.
    shares = {"redundant_share": 0.75, "attribute_share": 0.125, "utility_share": 0.125}
    context = context_of(task_data(), tmp_path, attribute_labels=[0], ablations=5, **shares)
    _, found = analyse(two_tasks(idle=24), context)
    effects = {effect.role: effect for effect in found.ablations}
    assert set(effects) == {"attribute", "utility", "redundant"}
    for effect in effects.values():
        assert len(effect.random_attribute) == len(effect.random_utility) == 5
        assert effect.counts
    # What serves one task alone does nothing for the other, up to the means that go into the bias.
    assert effects["attribute"].attribute > 3 * effects["attribute"].utility
    assert effects["utility"].utility > 3 * effects["utility"].attribute
    assert any("so the role counts" in remark for remark in context.notes.remarks)


def test_a_role_within_the_random_range_does_not_count(tmp_path):
    # Labels without meaning: both slices are the same task.
    data = task_data(samples=160)
    mixed = ArraySource(next(iter(data.batches(160))).inputs, np.random.default_rng(0).integers(0, 2, 160))
    context = context_of(mixed, tmp_path, attribute_labels=[0], ablations=20, **PLANTED_SHARES)
    _, found = analyse(two_tasks(), context)
    assert any(not effect.counts for effect in found.ablations)
    assert any("the role does not count" in remark for remark in context.notes.remarks)


def test_a_group_is_replaced_by_its_mean():
    model, data = two_tasks(), task_data(40)
    (unit,) = find_units(model.ir)
    statistics = measure(model.ir, [unit], data, batch_size=8, threads=1, progress=SilentProgress())
    cut = prepare(model.ir, [unit]).without({unit.key: [1, 5]}, statistics.mean)
    (batch,) = data.batches(40)
    hidden = np.maximum(batch.inputs["x"] @ model.graph.initializers["up"].const_value.numpy(), 0)
    hidden[:, [1, 5]] = hidden[:, [1, 5]].mean(axis=0)
    expected = hidden @ model.graph.initializers["down"].const_value.numpy()
    (actual,) = ReferenceSession(cut).run(batch.inputs).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    dense = next(iter(ReferenceSession(model.ir).run(batch.inputs).values()))
    share = np.square(expected - dense).sum() / np.square(dense).sum()
    assert divergence(model.ir, cut, data, batch_size=7, threads=1) == pytest.approx(share, rel=1e-5)


def test_random_groups_have_the_form_of_the_group(tiny_bert):
    units = [unit for unit in find_units(tiny_bert.ir) if unit.kind in ("heads", "channels")]
    group = {units[0].key: [0], units[1].key: [3, 5, 8]}
    drawn = list(random_groups(group, units, 5, seed=1))
    assert all(
        {key: len(set(atoms)) for key, atoms in each.items()} == {units[0].key: 1, units[1].key: 3} for each in drawn
    )
    assert drawn == list(random_groups(group, units, 5, seed=1))
    assert len({str(each) for each in drawn}) > 1


def test_equal_importances_score_zero():
    np.testing.assert_array_equal(standardized(np.full(5, 0.1)), np.zeros(5))
    np.testing.assert_array_equal(standardized(np.zeros(3)), np.zeros(3))


def test_a_head_is_the_mean_of_its_squared_channels():
    importance = np.array([1.0, 2.0, 3.0, 5.0])
    z = (importance**2 - np.mean(importance**2)) / np.std(importance**2)
    found = atom_scores(importance, [(0, 1), (2, 3)], squared=True)
    np.testing.assert_allclose(found, [z[:2].mean(), z[2:].mean()], rtol=1e-12)


numbers = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5), st.integers(1, 50)), min_size=1, max_size=40)
share = st.floats(0, 1)


@given(numbers, share, share, share)
def test_shares_are_met_within_one_unit(units, redundant, attribute, utility):
    scores = np.array(units)
    roles = np.array(assign_roles(scores[:, 0], scores[:, 1], scores[:, 2], Shares(redundant, attribute, utility)))
    costs = scores[:, 2]
    largest = costs.max()
    spent = {role: costs[roles == role].sum() for role in ("redundant", "attribute", "utility", "mixed")}
    # 1e-6 for sums of floating-point shares.
    assert utility * costs.sum() - 1e-6 <= spent["utility"] <= utility * costs.sum() + largest
    assert spent["attribute"] <= attribute * costs.sum() + largest
    assert spent["redundant"] <= redundant * costs.sum() + largest
    assert sum(spent.values()) == costs.sum()


def test_the_most_mixed_are_mixed():
    roles = ["attribute", "mixed", "redundant", "mixed", "utility"]
    scores = np.array([9.0, 1.0, 5.0, 2.0, 4.0])
    assert most_mixed(roles, scores, np.ones(5), 0.2) == [3]
    assert most_mixed(roles, scores, np.ones(5), 1.0) == [3, 1]
    assert first_until(scores, np.ones(5), 0.0) == []


def test_what_is_protected_survives_the_steps_behind(tmp_path, tiny_bert):
    data = tiny_data(tiny_bert, samples=24)
    analysed, _ = analyse(tiny_bert, context_of(data, tmp_path, attribute_labels=[0], attribute_share=0.2))
    protection = Protection.chosen("units", analysed.assets)
    options = PruneStructureOptions(protect="units", ratio=0.5, score="magnitude", refit="none", kinds=("channels",))
    context = Context(options, SIGNED, tmp_path, data, seed=3)
    assert PruneStructure().check(analysed, context).status == "ok"
    pruned = PruneStructure().apply(analysed, context)
    moved = Protection.chosen("units", pruned.assets)
    cut = 0
    for name, axes in protection.weights.items():
        before, after = (each.graph.initializers[name].const_value.numpy() for each in (analysed, pruned))
        cut += before.size - after.size
        for axis, held in axes.items():
            places = sorted(moved.places(name, axis, after.shape[axis]))
            assert len(places) == len(held.kept)
            if before.ndim == 1:  # the other axis of a matrix lost channels as well
                np.testing.assert_array_equal(after[places], before[list(held.kept)])
    assert cut > 0


def test_the_map_keeps_the_attribute_where_none_and_random_maps_lose_it(tmp_path):
    """Same model, method and ratio without a map, with random maps of its size, and with it; on other samples."""
    model, data, other = two_tasks(), task_data(), task_data(seed=9)
    # Wanda sees task A in few samples only, so its channels are worth least to it.
    mostly_utility = data.select(np.flatnonzero((np.arange(len(data)) % 20 == 0) | (np.arange(len(data)) % 2 == 1)))
    analysed, _ = analyse(
        model, context_of(data, tmp_path, attribute_labels=[0], protected_mixed_share=0.0, **PLANTED_SHARES)
    )

    def lost(name: str, protection: Protection | None) -> float:
        options = {"score": "wanda", "refit": "none", "ratio": 0.4, "alignment": 1}
        if protection is not None:
            protection.save(tmp_path / name)
            options["protect"] = str(tmp_path / name)
        context = Context(PruneStructureOptions(**options), SIGNED, tmp_path, mostly_utility)
        pruned = PruneStructure().apply(model, context)
        attribute = other.select(np.flatnonzero(np.arange(len(other)) % 2 == 0))
        return divergence(model.ir, pruned.ir, attribute, batch_size=1, threads=1)

    whole = Protection.model_validate_json(analysed.assets[PROTECTION_ASSET])
    generator = np.random.default_rng(0)
    drawn = [sorted(generator.choice(10, 4, replace=False).tolist()) for _ in range(5)]
    maps = [
        Protection(weights={"down": {0: ProtectedAxis(length=10, kept=tuple(kept))}})
        for kept in drawn
        if kept != [0, 1, 2, 3]
    ]
    with_map = lost("map.json", whole)
    assert with_map < 1e-3
    assert with_map < min(lost("none.json", None), *(lost(f"{number}.json", each) for number, each in enumerate(maps)))


def test_protection_needs_an_analysis_before(tmp_path, tiny_bert):
    options = PruneStructureOptions(protect="units")
    verdict = PruneStructure().check(tiny_bert, Context(options, SIGNED, tmp_path, tiny_data(tiny_bert)))
    assert verdict.status == "refuse"
    assert "analyse-units" in verdict.reason


def test_one_recipe_analyses_and_prunes(tmp_path, tiny_bert):
    registry = isolated_registry(edgesmith_pruning)
    steps = [
        {"method": "analyse-units", "options": {"attribute_labels": [0]}},
        {"method": "prune-structure", "options": {"protect": "units", "score": "magnitude", "refit": "none"}},
    ]
    first, second = (run_recipe(registry, tiny_bert, {"steps": steps}, out=tmp_path) for _ in range(2))
    assert [row.status for row in first.ledger.rows[1:3]] == ["ok", "ok"]
    assert second.ledger.rows[1].cached
    assert second.ledger.rows[2].cached
    left = Protection.load(tmp_path / "artifact" / "assets" / PROTECTION_ASSET)
    lowered = Model.load(first.entry).graph
    held = {name: axes for name, axes in left.weights.items() if name in lowered.initializers}
    assert held
    for name, axes in held.items():
        shape = lowered.initializers[name].const_value.shape.numpy()
        assert {axis: shape[axis] for axis in axes} == {axis: each.length for axis, each in axes.items()}


def test_a_file_names_the_attribute(tmp_path):
    (batch,) = task_data().batches(80)
    inputs, labels = batch.inputs["x"], batch.labels
    np.savez(tmp_path / "task_a.npz", x=inputs[labels == 0])
    context = context_of(ArraySource({"x": inputs}), tmp_path, attribute=tmp_path / "task_a.npz", **PLANTED_SHARES)
    _, found = analyse(two_tasks(), context)
    assert list(found.groups[0].roles) == PLANTED


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not told what the attribute is"),
        ({"attribute": "nowhere.npz"}, "does not exist"),
        ({"attribute": "folder"}, "is no file with samples"),
        ({"attribute": "a.npz", "attribute_labels": [0]}, "not told what the attribute is"),
        ({"attribute_labels": [7]}, "no sample in the attribute"),
        ({"attribute_labels": [0, 1]}, "no sample in the utility"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(options, words, tmp_path):
    verdict = AnalyseUnits().check(two_tasks(), context_of(task_data(), tmp_path, **options))
    assert verdict.status == "refuse"
    assert words in verdict.reason


def test_options_choose_what_is_analysed_and_protected(tmp_path, tiny_bert):
    data = tiny_data(tiny_bert, samples=24)
    options = {"attribute_labels": [0], "kinds": ["heads"], "samples": 4, "batch_size": 2}
    result, found = analyse(tiny_bert, context_of(data, tmp_path, protected_mixed_share=0, **options))
    assert {group.kind for group in found.groups} == {"heads"}
    assert "attribute: 4 of 8 samples" in found.data
    assert "utility: 4 of 16 samples" in found.data
    more, _ = analyse(tiny_bert, context_of(data, tmp_path, protected_mixed_share=0.5, **options))
    few, many = (
        [axis.kept for axes in Protection.chosen("units", each.assets).weights.values() for axis in axes.values()]
        for each in (result, more)
    )
    assert 0 < sum(map(len, few)) < sum(map(len, many))


def test_sparse_weights_spare_what_was_found(tmp_path, tiny_bert):
    data = tiny_data(tiny_bert, samples=24)
    analysed, _ = analyse(tiny_bert, context_of(data, tmp_path, attribute_labels=[0]))
    options = PruneWeightsOptions(protect="units", criterion="magnitude", refit=False)
    sparse = PruneWeights().apply(analysed, Context(options, SIGNED, tmp_path, data, seed=3))
    compared = 0
    for name, axes in Protection.chosen("units", analysed.assets).weights.items():
        before, after = (each.graph.initializers[name].const_value.numpy() for each in (analysed, sparse))
        for axis, held in axes.items():
            if before.ndim == 2 and (before != after).any():
                np.testing.assert_array_equal(after.take(held.kept, axis), before.take(held.kept, axis))
                compared += 1
    assert compared > 3
