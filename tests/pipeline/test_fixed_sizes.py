"""Open dimensions of the inputs: sizes that a recipe names, and those that a target asks for."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import edgesmith
from edgesmith.api import Settings
from edgesmith.data import DataChoice, RunData, choose_data
from edgesmith.errors import ModelError, RecipeError, TargetError
from edgesmith.fixed_sizes import fix_sizes
from edgesmith.host.loader import load_registry
from edgesmith.measure.runner import LatencyPlan
from edgesmith.plan import make_plan
from edgesmith.recipe import Recipe, with_shapes
from edgesmith.store import Store
from edgesmith_calibration.preprocessing import TextPreprocessing
from edgesmith_calibration.sources import ArraySource
from tests.pipeline.conftest import Job

QUICK = LatencyPlan(warmup_runs=1, min_rounds=2, max_rounds=2)
FLOAT = {"name": "float", "steps": []}


def fixed(model: edgesmith.Model, target: str, folder: Path, choice: DataChoice | None = None, **shapes: int):
    plan = make_plan(load_registry(), Recipe(steps=(), shapes=shapes), target)
    return fix_sizes(model, plan, choice or choose_data(None), batch_size=1, store=Store(folder))


def shapes_of(model: edgesmith.Model) -> list[list[object]]:
    return [list(value.shape) for value in model.graph.inputs]


def test_a_recipe_fixes_what_it_names(job: Job) -> None:
    settings = Settings(threads=1, store=job.folder / "store", latency_plan=QUICK)
    recipe = FLOAT | {"shapes": {"batch": 2}}
    artifact = edgesmith.compile(job.model, out=job.folder / "a", recipe=recipe, data=job.data, settings=settings)
    (image,) = onnxruntime.InferenceSession(str(artifact.entry)).get_inputs()
    assert image.shape[0] == 2
    assert any("batch = 2" in remark for remark in artifact.ledger.rows[0].remarks)
    assert "batch: 2" in (artifact.directory / "recipe.yaml").read_text()


def test_a_target_without_open_dimensions_gets_what_the_run_knows(tiny_bert, tmp_path: Path) -> None:
    task = tiny_bert.task.model_copy(update={"preprocessing": TextPreprocessing(max_length=24)})
    model = edgesmith.Model(tiny_bert.ir, task, tiny_bert.provenance)
    assert shapes_of(fixed(model, "android-qnn", tmp_path)) == [[1, 24]] * 3
    assert shapes_of(fixed(model, "android-qnn", tmp_path, sequence=16)) == [[1, 16]] * 3
    assert fixed(model, "onnx-cpu", tmp_path) is model


def test_the_data_tells_a_length_that_nothing_else_does(tiny_bert, tmp_path: Path) -> None:
    arrays = {str(value.name): np.ones((3, 9), np.int64) for value in tiny_bert.graph.inputs}
    choice = choose_data(RunData(None, ArraySource(arrays)))
    assert shapes_of(fixed(tiny_bert, "android-qnn", tmp_path, choice)) == [[1, 9]] * 3


@pytest.mark.parametrize("form", ["opened", "npz"])
def test_arrays_decide_their_length_also_where_texts_would_be_cut_elsewhere(tiny_bert, tmp_path: Path, form) -> None:
    task = tiny_bert.task.model_copy(update={"preprocessing": TextPreprocessing(max_length=24)})
    model = edgesmith.Model(tiny_bert.ir, task, tiny_bert.provenance)
    tokens = np.random.default_rng(0).integers(0, 50, (8, 9))
    arrays = {str(value.name): tokens for value in model.graph.inputs}
    np.savez(tmp_path / "tokens.npz", **arrays)
    choice = choose_data(RunData(None, ArraySource(arrays)) if form == "opened" else tmp_path / "tokens.npz")
    result = fixed(model, "android-qnn", tmp_path, choice)
    assert shapes_of(result) == [[1, 9]] * 3
    assert result.task.preprocessing.max_length == 9


def test_a_length_that_nobody_knows_is_asked_for(tiny_bert, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'sequence' of input") as caught:
        fixed(tiny_bert, "android-qnn", tmp_path)
    assert "--shape sequence=SIZE" in caught.value.fix


def test_a_dimension_that_is_not_there_is_refused(tiny_bert, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'width'"):
        fixed(tiny_bert, "onnx-cpu", tmp_path, width=3)


def test_the_result_is_kept_in_the_store(tiny_vit, tmp_path: Path) -> None:
    first = fixed(tiny_vit, "android-qnn", tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")}
    second = fixed(tiny_vit, "android-qnn", tmp_path)
    assert first.digest() == second.digest()
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.onnx")}


def test_words_of_the_command_line_become_sizes() -> None:
    recipe = Recipe(steps=(), shapes={"batch": 1, "sequence": 8})
    assert with_shapes(recipe, ["sequence=32", "x=y:0=4"]).shapes == {"batch": 1, "sequence": 32, "x=y:0": 4}
    assert with_shapes(recipe, []) == recipe


@pytest.mark.parametrize("word", ["batch", "=3", "batch=", "batch=-1", "batch=1.5", "batch=" + "9" * 20])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(RecipeError, match="no size"):
        with_shapes(Recipe(steps=()), [word])


def test_sizes_are_part_of_the_published_schema() -> None:
    assert "shapes" in json.dumps(Recipe.model_json_schema())
