"""The recipes in examples/recipes do on small networks what their page says, for ONNX Runtime and for TensorRT."""

import importlib.util
import json
from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

import edgesmith
from edgesmith.host.loader import load_registry
from edgesmith.host.records import Kind
from edgesmith.model import Model
from edgesmith.plan import make_plan
from edgesmith.recipe import load_recipe
from edgesmith_tensorrt.gate import COMPILERS
from tests.docs.test_documentation import ROOT
from tests.folding.folding_models import BLOCKS, block_count, deep, inputs_of
from tests.pipeline.test_robustness import QUICK
from tests.tokens.aggregate_networks import images, vision

FOLDER = ROOT / "examples" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
TARGETS = ("onnx-cpu", "rtx-40")
RUNTIMES = [
    TARGETS[0],
    pytest.param(
        TARGETS[1],
        marks=pytest.mark.skipif(
            not any(importlib.util.find_spec(name) for name in COMPILERS),
            reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
        ),
    ),
]


def compiled(recipe, model, arrays, target, folder):
    """Return the artifact and the rows of its ledger by stage."""
    ir.save(model.ir, folder / "model.onnx")
    np.savez(folder / "data.npz", **arrays)
    settings = edgesmith.Settings(threads=1, store=folder / "store", latency_plan=QUICK)
    files = {"recipe": FOLDER / f"{recipe}.yaml", "data": folder / "data.npz", "out": folder / "artifact"}
    artifact = edgesmith.compile(folder / "model.onnx", target=target, settings=settings, **files)
    if target == "rtx-40":
        facts = json.loads((folder / "artifact" / "manifest.json").read_text())["build"]["engine"]
        assert facts["compute_capability"] == "8.9"
    return artifact, {row.stage: row for row in artifact.ledger.rows}


def operators(artifact):
    return Counter(node.op_type for node in ir.load(artifact.entry).graph)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_is_named_by_its_file_and_stands_on_the_page(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.summary.endswith(".")
    page = (FOLDER / "README.md").read_text()
    assert f"[{path.name}]({path.name})" in page
    assert f"--recipe examples/recipes/{path.name}" in page


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_each_recipe_names_methods_options_and_an_order_that_the_target_takes(path, target):
    plan = make_plan(load_registry(plugins=False), load_recipe(path), target)
    assert [step.record.kind for step in plan.steps][-1] == Kind.QUANTIZE


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
def test_a_language_model_is_folded_cured_and_quantized(target, tmp_path):
    model = deep("llama")
    artifact, rows = compiled("fold-language-model", model, inputs_of(model, 24), target, tmp_path)
    assert rows["remove-blocks"].macs < rows["source"].macs
    assert f"Removed 1 of {BLOCKS} blocks" in " ".join(rows["remove-blocks"].remarks)
    assert "held-out" in " ".join(rows["recover"].remarks)
    assert operators(artifact).keys() & {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul"}
    if target == "onnx-cpu":
        assert block_count(Model(ir.load(artifact.entry), model.task, model.provenance)) == BLOCKS - 1


@pytest.mark.slow
@pytest.mark.parametrize("target", RUNTIMES)
def test_a_vision_transformer_is_pruned_its_tokens_merge_and_it_is_quantized(target, tmp_path):
    model = vision(blocks=3)
    artifact, rows = compiled("reduce-vision-transformer", model, images(model, 16), target, tmp_path)
    macs = [rows[stage].macs for stage in ("source", "prune-structure", "merge-tokens")]
    assert macs[0] > macs[1] > macs[2]
    found = operators(artifact)
    assert found["TopK"] and found.keys() & {"QuantizeLinear", "QLinearMatMul"}
