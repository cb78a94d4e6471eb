"""Protection: what must stay, written and read back, refused where it does not fit."""

from pathlib import Path

import pytest

import edgesmith_pruning
from edgesmith.errors import RecipeError
from edgesmith.model import Model
from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith.testing import isolated_registry, run_recipe, tiny_mlp

MADE = Protection(model="abc", data="128 texts", weights={"up": {1: ProtectedAxis(length=8, kept=(0, 3, 7))}})


def test_it_comes_back_as_it_was_saved(tmp_path):
    MADE.save(tmp_path / "protect.json")
    assert Protection.load(tmp_path / "protect.json") == MADE


def test_places_are_those_of_the_weight_and_axis():
    assert MADE.places("up", 1, 8) == {0, 3, 7}
    assert MADE.places("up", 0, 4) == MADE.places("down", 1, 8) == frozenset()


def test_a_protection_without_a_weight_of_the_model_is_refused():
    MADE.require_known({"up", "down"})
    Protection().require_known({"down"})
    with pytest.raises(RecipeError, match="none of the 1 weights of the protection, such as up"):
        MADE.require_known({"down"})


def test_weights_that_a_model_does_not_have_are_named():
    assert MADE.unknown({"up", "down"}) == ()
    more = MADE.including({"side": (3, 8), "other": (2,)})
    assert more.unknown({"up", "side"}) == ("other",)


def test_new_weights_are_kept_whole():
    more = MADE.including({"side": (3, 8)})
    assert more.places("side", 0, 3) == {0, 1, 2}
    assert more.places("up", 1, 8) == {0, 3, 7}
    assert more.model == ""


def test_places_of_another_length_are_refused():
    with pytest.raises(RecipeError, match="counts 8 places on axis 1 of up, the model has 6"):
        MADE.places("up", 1, 6)


def test_places_move_up_where_others_go():
    moved = MADE.without({("up", 1): {1, 2, 6}, ("up", 0): {0}, ("down", 1): {0}})
    assert moved.weights == {"up": {1: ProtectedAxis(length=5, kept=(0, 1, 4))}}
    assert moved.model == ""
    assert MADE.places("up", 1, 8) == {0, 3, 7}


def test_an_option_names_nothing_or_a_file_or_what_a_step_left(tmp_path):
    assert Protection.chosen(None, {PROTECTION_ASSET: b"not read"}) == Protection()
    MADE.save(tmp_path / "protect.json")
    assert Protection.chosen(tmp_path / "protect.json", {}) == MADE
    assert Protection.chosen("units", {PROTECTION_ASSET: MADE.model_dump_json().encode()}) == MADE
    with pytest.raises(RecipeError, match="no step before this one found any"):
        Protection.chosen("units", {})
    with pytest.raises(RecipeError, match="is damaged"):
        Protection.chosen("units", {PROTECTION_ASSET: b"{"})


@pytest.mark.parametrize("kept", [(3, 1), (1, 1), (8,), (-1,)])
def test_places_are_increasing_and_on_the_axis(kept):
    with pytest.raises(ValueError, match="different places from 0 to 7"):
        ProtectedAxis(length=8, kept=kept)


@pytest.mark.parametrize("content", [None, "", "{", '{"format": "other"}', '{"weights": {"up": {"x": {}}}}'])
def test_a_damaged_file_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "protect.json").write_text(content)
    with pytest.raises(RecipeError, match="cannot be read"):
        Protection.load(tmp_path / "protect.json")


def test_a_step_is_done_again_when_the_file_holds_other_places(tmp_path: Path) -> None:
    registry = isolated_registry(edgesmith_pruning)
    file = tmp_path / "protect.json"
    options = {"criterion": "magnitude", "refit": False, "heads": True, "protect": str(file)}
    recipe = {"steps": [{"method": "prune-weights", "options": options}]}
    model = tiny_mlp()
    name, length = next((v.name, v.shape[1]) for v in model.graph.initializers.values() if len(v.shape) == 2)
    written = []
    for weights in ({}, {name: {1: ProtectedAxis(length=length, kept=tuple(range(length)))}}):
        Protection(weights=weights).save(file)
        artifact = run_recipe(registry, model, recipe, out=tmp_path)
        written.append(Model.load(artifact.entry).graph.initializers[name].const_value.numpy())
    assert (written[0] == 0).any()
    assert not (written[1] == 0).any()
