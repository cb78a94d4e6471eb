"""Engines that are built at once: what is kept under which key, and timing caches of other devices."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

import edgesmith
from edgesmith.artifact import changed_files
from edgesmith.device.shipment import read_shipment
from edgesmith.files import hash_file
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt import engine, gate
from small_graphs import context, graph, node

needs_compiler = pytest.mark.skipif(
    not any(map(gate._is_installed, gate.COMPILERS)),
    reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
)
WIDTH = 32


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def product(seed=0):
    weights = {"w": np.random.default_rng(seed).normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32)}
    return graph([node("MatMul", ["x", "w"], "m"), node("Relu", ["m"], "y")], weights, {"x": ["batch", WIDTH]})


def device(name):
    _, target = find_target(load_registry(), name)
    return target


def written(folder, model=None, target="rtx-40"):
    """Write the files of a lowered model for a target, as an artifact has them."""
    target = device(target)
    folder.mkdir()
    scratch = folder.parent / (folder.name + "-scratch")
    scratch.mkdir()
    used = context(None, None, target.dialect)
    used = type(used)(options=None, dialect=target.dialect, scratch=scratch)
    target.build(target.lower(model or product(), used), folder)
    return target


def build(folder, *words):
    command = [sys.executable, engine.__file__, "--recipe", str(folder / "build.json"), *words]
    command += ["--module", "tensorrt_rtx", "--module", "tensorrt_rtx_bindings"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1])


def run(folder, script):
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert "DeprecationWarning" not in done.stderr
    return json.loads(done.stdout if script == "validate.py" else done.stdout.splitlines()[-1])


@needs_compiler
def test_an_artifact_for_a_card_carries_its_engine_and_says_what_it_was_built_with(tmp_path):
    source = tmp_path / "product.onnx"
    ir.save(product().ir, source)
    settings = edgesmith.Settings(threads=1, store=tmp_path / "store")
    recipe = {"version": 1, "steps": []}
    edgesmith.compile(source, out=tmp_path / "artifact", target="rtx-40", recipe=recipe, settings=settings)
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    facts = manifest["build"]["engine"]
    assert facts["compute_capability"] == "8.9"
    assert facts["bytes"] == (tmp_path / "artifact" / "engine.plan").stat().st_size
    assert {"engine.plan", "engine.json"} <= manifest["files"].keys()
    assert not (tmp_path / "artifact" / "build.sh").exists()  # trtexec builds no engine for TensorRT for RTX
    # The device takes this engine: the recipe says what it was built for, and with which module.
    copy = tmp_path / "device"
    shutil.copytree(tmp_path / "artifact", copy)
    (copy / "tensorrt.py").write_text("raise SystemExit('the other product was imported')\n")
    assert run(copy, "build.py")["status"] == "cached"
    # One that is built anew there is no damage, and one that is cut is.
    (copy / "engine.json").unlink()
    assert run(copy, "build.py")["status"] == "built"
    (copy / "engine.plan").write_bytes((copy / "engine.plan").read_bytes() + b"more")
    (copy / "engine.json").write_text(json.dumps({"sha256": hash_file(copy / "engine.plan")}))
    assert run(copy, "validate.py")["damaged_files"] == []
    assert changed_files(copy) == ()
    assert {"engine.plan", "engine.json"} <= {file.name for file in read_shipment(copy).files}
    (copy / "engine.plan").write_bytes(b"cut")
    assert run(copy, "validate.py")["damaged_files"] == ["engine.plan"]
    (copy / "engine.json").write_text("{")
    assert run(copy, "validate.py")["damaged_files"] == ["engine.json"]
    (copy / "engine.plan").unlink()
    (copy / "engine.json").unlink()
    assert not {"engine.plan", "engine.json"} & {file.name for file in read_shipment(copy).files}


@needs_compiler
def test_an_artifact_for_a_board_carries_none_since_a_proxy_is_no_product(tmp_path):
    target = written(tmp_path / "files", target="jetson-orin-nano")
    assert target.finish(tmp_path / "files") == {}
    assert not (tmp_path / "files" / "engine.plan").exists()


@needs_compiler
def test_the_gate_and_the_artifact_build_once(tmp_path, store):
    target = written(tmp_path / "files")
    (kept,) = [path for path in (store / "engines").glob("*") if path.is_dir()]
    facts = target.finish(tmp_path / "files")["engine"]
    assert facts["status"] == "cached"
    assert (tmp_path / "files" / "engine.plan").read_bytes() == (kept / "engine.plan").read_bytes()


@needs_compiler
def test_another_weight_capability_or_flag_is_another_engine(tmp_path):
    written(tmp_path / "files")
    words = ("--cache", str(tmp_path / "engines"))
    assert build(tmp_path / "files", *words, "--compute-capability", "8.9")["status"] == "built"
    assert build(tmp_path / "files", *words, "--compute-capability", "8.9")["status"] == "cached"
    assert build(tmp_path / "files", *words, "--compute-capability", "8.6")["status"] == "built"
    recipe = json.loads((tmp_path / "files" / "build.json").read_text())
    (tmp_path / "files" / "build.json").write_text(json.dumps(recipe | {"builder_optimization_level": 1}))
    assert build(tmp_path / "files", *words, "--compute-capability", "8.6")["status"] == "built"
    written(tmp_path / "others", product(seed=1))
    assert build(tmp_path / "others", *words, "--compute-capability", "8.6")["status"] == "built"


@needs_compiler
@pytest.mark.parametrize("damage", ["short", "another byte", "no json", "no record"])
def test_a_damaged_engine_is_built_again(tmp_path, damage):
    written(tmp_path / "files")
    first = build(tmp_path / "files", "--compute-capability", "8.9")
    plan, record = tmp_path / "files" / "engine.plan", tmp_path / "files" / "engine.json"
    if damage == "short":
        plan.write_bytes(plan.read_bytes()[:-1])
    elif damage == "another byte":
        plan.write_bytes(plan.read_bytes()[:-1] + bytes([plan.read_bytes()[-1] ^ 1]))
    elif damage == "no json":
        record.write_text("{")
    else:
        record.unlink()
    assert build(tmp_path / "files", "--compute-capability", "8.9")["status"] == "built"
    assert plan.stat().st_size == first["bytes"]


@needs_compiler
def test_no_timing_cache_is_made_where_they_are_deprecated(tmp_path):
    written(tmp_path / "files")
    assert "timing_cache" not in build(tmp_path / "files")
    assert not (tmp_path / "files" / "timing.cache").exists()


def test_a_board_never_falls_back_to_the_other_product(tmp_path):
    written(tmp_path / "files", target="jetson-orin-nano")
    (tmp_path / "files" / "tensorrt.py").write_text("raise ImportError('none here')\n")
    answer = run(tmp_path / "files", "build.py")
    assert (answer["status"], answer["errors"]) == ("missing", [{"message": "tensorrt: none here"}])


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("tensorrt_rtx_bindings", "8.9", "8.9"),
        ("tensorrt_rtx", "8.7", ""),
        ("tensorrt_rtx", None, ""),
        ("tensorrt", "8.9", ""),
    ],
)
def test_ahead_of_time_an_engine_is_built_for_the_card_of_the_recipe(name, capability, expected):
    module = SimpleNamespace(__name__=name, ComputeCapability=SimpleNamespace(SM89=5))
    assert engine._own_capability(module, {"compute_capability": capability}) == expected


class FakeConfig:
    """Follows the documented rules of timing caches: damaged content gives None, another device's is not taken."""

    def __init__(self) -> None:
        self.cache = None

    def create_timing_cache(self, content):
        return None if content == b"damaged" else SimpleNamespace(content=content)

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        if cache.content == b"of another device":
            return False
        self.cache = cache
        return True


@pytest.mark.parametrize(
    ("content", "answer"),
    [(b"of this device", "used"), (b"damaged", "new"), (b"of another device", "new"), (None, "new")],
)
def test_only_timing_caches_of_this_device_are_used(tmp_path, content, answer):
    file, config = tmp_path / "timing.cache", FakeConfig()
    if content is not None:
        file.write_bytes(content)
    assert engine._use_timing_cache(config, file) == answer
    assert config.cache.content == (content if answer == "used" else b"")


def test_a_builder_without_timing_caches_works_without(tmp_path):
    assert engine._use_timing_cache(SimpleNamespace(), tmp_path / "timing.cache") == ""


def test_the_cache_of_engines_keeps_the_newest_within_its_size(tmp_path):
    for index, size in enumerate((10, 20, 30)):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / "engine.plan").write_bytes(bytes(size))
        os.utime(tmp_path / str(index) / "engine.plan", (index, index))
    gate._trim(tmp_path, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    gate._trim(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]  # the newest stays: it is about to be used


@pytest.mark.parametrize(
    ("listed", "installed", "expected"),
    [
        ("8.7\n", {"tensorrt", "tensorrt_rtx"}, ("8.7", False)),
        ("8.9\n", {"tensorrt", "tensorrt_rtx"}, ("8.6", True)),
        ("", {"tensorrt_rtx"}, ("8.6", True)),
        ("8.7\n", {"tensorrt_rtx"}, ("8.6", True)),
    ],
)
def test_tensorrt_itself_is_asked_only_on_a_gpu_of_the_devices_kind(tmp_path, monkeypatch, listed, installed, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{listed}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(gate, "_is_installed", installed.__contains__)
    compiler = gate.choose_compiler(device("jetson-orin-nano").device)
    assert (compiler.compute_capability, compiler.is_proxy) == expected


def test_a_stage_that_is_only_measured_has_no_recipe_and_nothing_is_searched(tmp_path, monkeypatch):
    def never(model, samples=None):
        raise AssertionError("the shapes were searched")

    monkeypatch.setattr("edgesmith_tensorrt.build_recipe.optimization_shapes", never)
    built = device("jetson-orin-nano").build(product(), tmp_path)
    assert built.recipe == {}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_shapes_are_searched_once_for_a_lowered_graph(tmp_path, monkeypatch):
    from edgesmith_tensorrt import build_recipe

    searched = []
    original = build_recipe.optimization_shapes

    def counted(model, samples=None):
        searched.append(model)
        return original(model, samples)

    monkeypatch.setattr(build_recipe, "optimization_shapes", counted)
    monkeypatch.setattr(gate, "COMPILERS", ("no_such_compiler",))
    written(tmp_path / "files", target="jetson-orin-nano")
    assert len(searched) == 1
    recipe = json.loads((tmp_path / "files" / "build.json").read_text())
    assert recipe["shapes"]["x"] == {"min": [1, WIDTH], "opt": [1, WIDTH], "max": [8, WIDTH]}
