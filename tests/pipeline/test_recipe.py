"""Recipes: what is accepted, and what each wrong one is told."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.errors import RecipeError
from edgesmith.recipe import Recipe, bundled_recipes, load_recipe


@pytest.mark.parametrize("name", sorted(bundled_recipes()))
def test_each_bundled_recipe_is_valid_and_says_what_it_does(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.summary.endswith(".")


@pytest.mark.parametrize("write", [yaml.safe_dump, json.dumps], ids=["yaml", "json"])
def test_a_recipe_file_is_read_back_as_written(tmp_path: Path, write: object) -> None:
    recipe = load_recipe({"steps": [{"method": "quantize-int8", "options": {"mode": "dynamic"}}], "seed": 3})
    file = tmp_path / "recipe"
    file.write_text(write(recipe.model_dump(mode="json")))  # type: ignore[operator]
    assert load_recipe(file) == recipe
    assert load_recipe(recipe) is recipe


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "steps"),
        ({"steps": [{}]}, "steps.0.method"),
        ({"steps": [{"metod": "x"}]}, "steps.0.metod"),
        ({"steps": [], "sped": 1}, "sped"),
        ({"steps": [], "version": 2}, "version"),
        ({"steps": [], "budget": {"max_metric_drop": -1}}, "budget.max_metric_drop"),
        ({"steps": [], "keep": "sometimes"}, "keep"),
        ({"steps": [], "seed": -1}, "seed"),
        ({"steps": [], "budget": {"max_latency_ms": float("inf")}}, "budget.max_latency_ms"),
        ([1, 2], "top level"),
        ("text", "top level"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, data: object, words: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(RecipeError, match=words):
        load_recipe(file)


@pytest.mark.parametrize(
    ("data", "expected", "fix"),
    [
        ({"steps": [{"metod": "x"}]}, "a step: a mapping with the fields method, options.", "Did you mean `method`?"),
        (
            {"steps": [{"method": "quantize-int8", "mode": "dynamic"}]},
            "a step: a mapping with the fields method, options.",
            "If it is an option of the method, put it below `options`; `edgesmith methods quantize-int8` lists them.",
        ),
        ({"steps": [{"quantize-int8": {}}]}, "a step", "put it below `options`; `edgesmith methods` lists them."),
        ({"steps": ["quantize-int8"]}, "a step: a mapping with the fields method, options.", "Correct that field"),
        (
            {"steps": [], "budget": {"max_latency": 3}},
            "the budget: a mapping with the fields max_m",
            "`max_latency_ms`",
        ),
        ({"steps": [], "tagret": "onnx-cpu"}, "the recipe: a mapping with the fields version, ", "`target`?"),
        ({"steps": "all"}, "the recipe: a mapping with the fields version, ", "Correct that field"),
    ],
)
def test_a_wrong_field_is_told_the_fields_of_where_it_stands(data: dict, expected: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(data)
    assert caught.value.expected.startswith(expected) and fix in caught.value.fix


def test_a_mistyped_name_gets_the_nearest() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("int9")
    assert "int8" in caught.value.fix


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"steps: [", b"!!python/object/apply:os.system ['true']"])
def test_hostile_or_broken_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(file)


@pytest.mark.parametrize("bomb", ["aliases", "depth"])
def test_small_files_that_stand_for_huge_data_are_refused_at_once(tmp_path: Path, bomb: str) -> None:
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 30))]
    text = "\n".join(lines) + "\nsteps: *a29" if bomb == "aliases" else "steps: " + "[" * 20_000
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(file)


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"# " + b"x" * 2_000_000)
    with pytest.raises(RecipeError, match="large"):
        load_recipe(file)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    )
)
def test_any_data_gives_a_recipe_or_one_clear_error(data: object) -> None:
    try:
        recipe = load_recipe({"steps": data} if not isinstance(data, dict) else data)
    except RecipeError as error:
        assert error.expected and error.why and error.fix
    else:
        assert isinstance(recipe, Recipe)
