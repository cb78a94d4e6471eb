"""LaCo: what removed blocks computed is put into the block before them."""

import numpy as np
import pytest
from tests.folding.folding_models import arrays_of, deep, inputs_of, remove, remove_with_notes
from tests.small_graphs import run

from edgesmith_folding.sharing.formulas import laco_layer


def test_the_formula_adds_differences_and_the_released_form_keeps_the_last():
    base, first, last = (np.full((2, 2), number) for number in (1.0, 3.0, 7.0))
    np.testing.assert_array_equal(laco_layer(base, [first, last]), np.full((2, 2), 1.0 + 2.0 + 6.0))
    np.testing.assert_array_equal(laco_layer(base, [first, last], released=True), last)
    np.testing.assert_array_equal(laco_layer(base, []), base)


@pytest.mark.parametrize(("merge", "expected"), [("laco", "sum"), ("laco-release", "last")])
@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_the_block_before_a_run_gets_its_projections_and_keeps_its_norms(name, merge, expected):
    model = deep(name)
    before = {key: value.const_value.numpy() for key, value in model.graph.initializers.items()}
    merged = remove(model, blocks=(2, 3), compensation="none", merge=merge)
    plain = arrays_of(remove(model, blocks=(2, 3), compensation="none"))
    changed = {key for key, array in arrays_of(merged).items() if array != plain[key]}
    assert changed and all(key.startswith("block1.") and ".norm" not in key for key in changed)
    for key in changed:
        one, two, three = (before[key.replace("block1.", f"block{n}.")] for n in (1, 2, 3))
        wanted = three if expected == "last" else two + three - one
        np.testing.assert_allclose(merged.graph.initializers[key].const_value.numpy(), wanted, atol=1e-6)
    assert all(np.isfinite(array).all() for array in run(merged, inputs_of(model, 2)).values())


def test_runs_without_a_block_before_them_are_left_out():
    model = deep("gpt")
    removed, notes = remove_with_notes(model, blocks=(0,), compensation="none", merge="laco")
    assert any("nothing is merged" in reason for reason in notes.skipped.values())
    assert arrays_of(removed) == arrays_of(remove(model, blocks=(0,), compensation="none"))


def test_equal_blocks_merge_into_themselves():
    model = deep("llama").clone()
    weights = model.graph.initializers
    for name, value in weights.items():
        if name.startswith("block2.") and ".norm" not in name:
            value.const_value = weights[name.replace("block2.", "block1.")].const_value
    for merge in ("laco", "laco-release"):
        merged = arrays_of(remove(model, blocks=(2,), compensation="none", merge=merge))
        assert merged == arrays_of(remove(model, blocks=(2,), compensation="none"))
