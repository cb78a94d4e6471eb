"""What a DLA runs: limits operator by operator, parts, and transitions counted by hand."""

import itertools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgesmith.host.lint import run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_tensorrt.build_recipe import build_recipe, shell_script
from edgesmith_tensorrt.dla import place
from small_graphs import graph, node

REGISTRY = load_registry()


@pytest.fixture
def board(tmp_path):
    """A profile of a user that builds for the first DLA core."""
    path = tmp_path / "my-dla.toml"
    path.write_text(
        'extends = "jetson-agx-orin"\nname = "my-dla"\nsummary = "DLA core 0."\n[dla]\ncore = 0\n', encoding="utf-8"
    )
    return find_target(REGISTRY, str(path))


def weight(*shape):
    return np.random.default_rng(0).normal(0, 0.1, shape).astype(np.float32)


def image(nodes, weights=None, size=8, channels=4):
    return graph(nodes, weights or {}, {"x": [1, channels, size, size]})


def placement(model, board):
    return place(model.graph, board[1].dialect.accelerator)


def test_a_plain_convolutional_network_is_one_part_without_transitions(board):
    nodes = [node("Conv", ["x", "w"], "a"), node("Relu", ["a"], "b"), node("Add", ["b", "x"], "y")]
    found = placement(image(nodes, {"w": weight(4, 4, 1, 1)}), board)
    assert (found.loadables, found.transitions, found.fallbacks) == (1, 0, {})
    assert len(found.accelerated) == 3


def test_conversions_of_inputs_and_outputs_are_no_nodes_that_fall_back(board):
    nodes = [node("Cast", ["x"], "x_half", to=TensorProto.FLOAT16), node("Relu", ["x_half"], "a")]
    nodes += [node("Cast", ["a"], "y", to=TensorProto.FLOAT)]
    found = placement(image(nodes), board)
    assert (found.accelerated, found.fallbacks, found.transitions) == (("node_a",), {}, 0)
    nodes[2:] = [node("Cast", ["a"], "b", to=TensorProto.FLOAT), node("Relu", ["b"], "y")]
    assert placement(image(nodes), board).fallbacks == {"the DLA has no Cast": ("node_b",)}


def test_an_operator_in_the_middle_cuts_the_network_in_two(board):
    nodes = [node("Conv", ["x", "w"], "a"), node("Erf", ["a"], "b"), node("Conv", ["b", "w"], "y")]
    found = placement(image(nodes, {"w": weight(4, 4, 1, 1)}), board)
    assert found.fallbacks == {"the DLA has no Erf": ("node_b",)}
    assert (found.loadables, found.transitions) == (2, 2)


def test_a_branch_around_the_gpu_cannot_be_one_part(board):
    # x -> Conv a -> Erf b -> Add y, and a -> Add y: the sum needs what the GPU made of the first part.
    nodes = [node("Conv", ["x", "w"], "a"), node("Erf", ["a"], "b"), node("Add", ["a", "b"], "y")]
    found = placement(image(nodes, {"w": weight(4, 4, 1, 1)}), board)
    assert (found.loadables, found.transitions) == (2, 2)


def test_two_branches_of_one_depth_that_never_meet_are_two_parts(board):
    nodes = [node("Erf", ["x"], "e"), node("Conv", ["e", "w"], "a"), node("Conv", ["e", "w"], "b")]
    nodes += [node("Erf", ["a"], "c"), node("Erf", ["b"], "d"), node("Erf", ["c"], "f"), node("Mul", ["f", "d"], "y")]
    found = placement(image(nodes, {"w": weight(4, 4, 1, 1)}), board)
    # Two convolutions, and the product at the end. Values: e, a, b, d, f cross, each once.
    assert (found.loadables, found.transitions) == (3, 5)


LIMITS = [
    (("Conv", {"strides": [9, 1]}), {"w": (4, 4, 1, 1)}, 16, "strides 9x1"),
    (("Conv", {"dilations": [33, 1]}), {"w": (4, 4, 1, 1)}, 8, "dilations"),
    (("Conv", {}), {"w": (4, 4, 33, 1)}, 40, "kernel_shape 33x1"),
    (("Conv", {"pads": [32, 0, 0, 0]}), {"w": (4, 4, 1, 1)}, 8, "pads"),
    (("ConvTranspose", {"pads": [1, 1, 1, 1]}), {"w": (4, 4, 3, 3)}, 8, "pads"),
    (("ConvTranspose", {"group": 4}), {"w": (4, 1, 1, 1)}, 8, "groups"),
    (("MaxPool", {"kernel_shape": [9, 9]}), {}, 12, "kernel_shape 9x9"),
    (("GlobalAveragePool", {}), {}, 9, "window 9x9"),
    (("LRN", {"size": 11}), {}, 8, "window"),
    (("Gelu", {}), {}, 8, "has no Gelu"),
]


@pytest.mark.parametrize(("operator", "weights", "size", "reason"), LIMITS)
def test_each_limit_is_named(board, operator, weights, size, reason):
    name, attributes = operator
    arrays = {key: weight(*shape) for key, shape in weights.items()}
    found = placement(image([node(name, ["x", *arrays], "y", **attributes)], arrays, size), board)
    ((why, nodes),) = found.fallbacks.items()
    assert reason in why
    assert nodes == ("node_y",)


@pytest.mark.parametrize(
    ("operator", "weights"),
    [
        (("Conv", {"strides": [8, 8], "pads": [31, 0, 0, 0]}), {"w": (4, 4, 32, 32)}),
        (("ConvTranspose", {"strides": [2, 2]}), {"w": (4, 4, 2, 2)}),
        (("MaxPool", {"kernel_shape": [8, 8], "pads": [7, 7, 7, 7]}), {}),
        (("LeakyRelu", {"alpha": 0.1}), {}),
    ],
)
def test_what_lies_within_the_limits_stays(board, operator, weights):
    name, attributes = operator
    arrays = {key: weight(*shape) for key, shape in weights.items()}
    found = placement(image([node(name, ["x", *arrays], "y", **attributes)], arrays, 40), board)
    assert found.fallbacks == {}


@pytest.mark.parametrize(
    ("shape", "reason"), [(["n", 4, 8, 8], "not all numbers"), ([4, 8], "2 dimensions"), ([1, 4, 1, 9000], "beyond")]
)
def test_shapes_that_it_does_not_take_are_named(board, shape, reason):
    found = placement(graph([node("Relu", ["x"], "y")], {}, {"x": shape}), board)
    ((why, _),) = found.fallbacks.items()
    assert reason in why


def test_channels_are_joined_and_other_axes_are_not(board):
    for axis, stays in ((1, True), (-3, True), (2, False)):
        found = placement(image([node("Concat", ["x", "x"], "y", axis=axis)]), board)
        assert (found.fallbacks == {}) == stays


def test_what_constants_give_runs_nowhere(board):
    weights = {"w": np.ones((4, 4, 1, 1), np.int8), "s": np.float32(0.1)}
    nodes = [node("DequantizeLinear", ["w", "s"], "v"), node("Shape", ["x"], "n"), node("Conv", ["x", "v"], "y")]
    found = placement(image(nodes, weights), board)
    assert "node_v" not in found.accelerated
    assert not any("node_v" in nodes for nodes in found.fallbacks.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_a_chain_has_as_many_transitions_as_changes(tmp_path_factory, on_dla):
    folder = tmp_path_factory.mktemp("profile")
    (folder / "b.toml").write_text(
        'extends = "jetson-agx-orin"\nname = "b"\nsummary = "b"\n[dla]\ncore = 1\n', encoding="utf-8"
    )
    board = find_target(REGISTRY, str(folder / "b.toml"))
    names = ["x", *(f"v{index}" for index in range(len(on_dla) - 1)), "y"]
    operators = ["Relu" if each else "Erf" for each in on_dla]
    nodes = [node(op, [names[i]], names[i + 1]) for i, op in enumerate(operators)]
    found = placement(image(nodes), board)
    changes = sum(a != b for a, b in itertools.pairwise(on_dla))
    runs = sum(each and not before for before, each in zip([False, *on_dla], on_dla, strict=False))
    assert (found.transitions, found.loadables) == (changes, runs)


def lint(model, board):
    record, device = board
    return [
        result.finding
        for result in run_lints(REGISTRY, record, model, device.dialect)
        if result.lint == "dla-placement"
    ]


def test_the_rule_counts_and_names_and_is_silent_on_the_gpu(board):
    nodes = [node("Conv", ["x", "w"], "a"), node("Erf", ["a"], "b"), node("Conv", ["b", "w"], "y")]
    model = image(nodes, {"w": weight(4, 4, 1, 1)})
    summary, reason = lint(model, board)
    assert "1 of 3 nodes fall back" in summary.hazard
    assert "2 parts" in summary.hazard
    assert "2 transitions" in summary.hazard
    assert reason.nodes == ("node_b",)
    assert lint(model, find_target(REGISTRY, "jetson-agx-orin")) == []


def test_channels_for_tensor_cores_concern_what_falls_back(board):
    model = image([node("Conv", ["x", "w"], "y")], {"w": weight(20, 20, 1, 1)}, channels=20)
    for (record, device), words in (
        (board, "that fall back to the GPU"),
        (find_target(REGISTRY, "h100"), "products are"),
    ):
        found = run_lints(REGISTRY, record, model, device.dialect)
        (finding,) = (each.finding for each in found if each.lint == "channel-alignment")
        assert words in finding.hazard


def test_open_sizes_are_told_with_the_option_that_fixes_them(board):
    found = lint(graph([node("Relu", ["x"], "y")], {}, {"x": ["batch", 4, 8, "width"]}), board)
    assert len(found) == 2
    assert all("--shape batch=1 --shape width=SIZE" in finding.fix for finding in found)


def test_more_parts_than_a_core_holds_are_found(board):
    names = ["x", *(f"v{index}" for index in range(35)), "y"]
    nodes = [node(("Relu", "Erf")[i % 2], [names[i]], names[i + 1]) for i in range(36)]
    assert any("a DLA core holds 16" in finding.hazard for finding in lint(image(nodes), board))


def test_pairs_are_sent_to_the_gpu_with_the_reason(board):
    weights = {"s": np.float32(0.1), "z": np.int8(0)}
    nodes = [node("QuantizeLinear", ["x", "s", "z"], "q"), node("DequantizeLinear", ["q", "s", "z"], "d")]
    model = image([*nodes, node("Relu", ["d"], "y")], weights)
    assert any("Q/DQ" in finding.hazard for finding in lint(model, board))


def test_the_recipe_builds_for_the_core_with_fixed_shapes_and_a_script_for_both_versions(board):
    model = graph([node("Relu", ["x"], "y")], {}, {"x": ["n", 4, 8, 8]})
    recipe = build_recipe(model, board[1].device, "model.onnx")
    assert recipe["dla_core"] == 0
    assert recipe["shapes"]["x"] == {bound: [1, 4, 8, 8] for bound in ("min", "opt", "max")}
    assert json.loads(json.dumps(recipe)) == recipe
    assert "--useDLACore=0" in shell_script(recipe)


@pytest.mark.parametrize(("help_text", "flag"), [("  --fp16  made up", "--fp16"), ("made up", "--stronglyTyped")])
def test_the_script_for_a_dla_asks_trtexec_how_precision_is_said(board, tmp_path, help_text, flag):
    model = graph([node("Relu", ["x"], "y")], {}, {"x": [1, 4, 8, 8]})
    script = tmp_path / "build.sh"
    script.write_text(shell_script(build_recipe(model, board[1].device, "model.onnx")), encoding="utf-8")
    fake = Path(tmp_path / "fake_trtexec")
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = --help ]; then echo "{help_text}"; else printf "%s\\n" "$@"; fi\n', encoding="utf-8"
    )
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(script)], env={"TRTEXEC": str(fake), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[0] == flag
    assert "--allowGPUFallback" in words
