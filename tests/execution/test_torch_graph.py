"""What TorchGraph promises beside right numbers: taps, early freeing, parameters, write-back, devices, errors."""

import copy
import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest
import torch
from text_graphs import assert_same_as_reference, parse, run_torch, tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgesmith.errors import DataError, ModelError, UnsupportedOperatorError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.torch_graph import TorchGraph

MLP = """g (float[n, 4] x) => (float[n, 2] y) {
    hidden = MatMul(x, first)
    biased = Add(hidden, bias)
    active = Relu(biased)
    y = MatMul(active, second) }"""

# The text format knows no dots.
NAMES = {"first": "layer.0.weight", "bias": "layer.0.bias", "second": "layer.1.weight"}


def mlp(seed: int = 0, dtype: type = np.float32) -> ir.Model:
    generator = np.random.default_rng(seed)
    shapes = {"first": (4, 8), "bias": (8,), "second": (8, 2)}
    weights = {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    model = parse(MLP.replace("float[", f"{kind}["), weights=weights)
    for name, dotted in NAMES.items():
        model.graph.initializers[name].name = dotted
    return model


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def chain(length: int) -> ir.Model:
    lines = " ".join(f"v{i + 1} = Exp(v{i})" for i in range(length))
    return parse(f"g (float[1024] v0) => (float[1024] y) {{ {lines} y = Neg(v{length}) }}")


def test_each_tensor_dies_after_its_last_use():
    graph = TorchGraph(chain(20))
    x = torch.zeros(1024)
    with torch.no_grad(), LiveBytes() as live:
        graph({"v0": x})
    assert live.peak <= 2 * x.nbytes
    with torch.no_grad(), LiveBytes() as live:
        graph({"v0": x}, taps=["v3", "v7"])
    assert live.peak <= 4 * x.nbytes


def test_inputs_are_not_kept_alive():
    graph = TorchGraph(chain(2))
    x = torch.zeros(1024)
    graph({"v0": x})
    reference = weakref.ref(x)
    del x
    gc.collect()
    assert reference() is None


def test_taps_at_any_value_agree_with_the_reference():
    model = mlp()
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    names = ("hidden", "biased", "active", "x", "layer.0.bias", "y")
    found = run_torch(model, {"x": x}, names)
    expected = ReferenceSession(model, taps=["hidden", "biased", "active", "x"]).run({"x": x})
    assert list(found) == ["y", "hidden", "biased", "active", "x", "layer.0.bias"]
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_parameters_have_the_initializers_names_and_torch_tools_find_them():
    graph = TorchGraph(mlp())
    assert [name for name, _ in graph.named_parameters()] == ["layer.0.weight", "layer.0.bias", "layer.1.weight"]
    assert graph.get_parameter("layer.0.weight").shape == (4, 8)
    other = TorchGraph(mlp(seed=5))
    other.load_state_dict(graph.state_dict())
    x = {"x": torch.ones(2, 4)}
    torch.testing.assert_close(other(x)["y"], graph(x)["y"])
    replaced = {name: torch.zeros_like(value) for name, value in graph.named_parameters()}
    assert not torch.func.functional_call(graph, replaced, (x,))["y"].any()


def test_a_trained_step_is_written_back_and_runs_the_same_in_onnx_runtime():
    model = mlp()
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    graph = TorchGraph(model)
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    graph(tensors({"x": x}))["y"].square().mean().backward()
    optimizer.step()
    written = graph.to_ir()
    found = graph(tensors({"x": x}))["y"].detach().numpy()
    np.testing.assert_allclose(ReferenceSession(written).run({"x": x})["y"], found, rtol=1e-5, atol=1e-6)
    changed = {name: value.const_value.numpy() for name, value in written.graph.initializers.items()}
    assert all((changed[name] != before[name]).any() for name in before)
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)
    optimizer.step()
    np.testing.assert_array_equal(
        written.graph.initializers["layer.0.bias"].const_value.numpy(), changed["layer.0.bias"]
    )


def test_write_back_keeps_dtype_and_sharing():
    model = mlp(dtype=np.float16)
    bias = model.graph.initializers["layer.0.bias"]
    twin = ir.Value(name="twin", const_value=bias.const_value, shape=bias.shape, type=bias.type)
    model.graph.register_initializer(twin)
    (add,) = [node for node in model.graph if node.op_type == "Add"]
    model.graph.insert_after(add, extra := ir.node("Add", [add.outputs[0], twin]))
    (relu,) = [node for node in model.graph if node.op_type == "Relu"]
    relu.replace_input_with(0, extra.outputs[0])
    graph = TorchGraph(model)
    assert len(list(graph.parameters())) == 3
    graph.float()
    with torch.no_grad():
        for parameter in graph.parameters():
            parameter.mul_(0.5)
    written = graph.to_ir().graph.initializers
    assert {value.const_value.dtype for value in written.values()} == {ir.DataType.FLOAT16}
    assert written["twin"].const_value is written["layer.0.bias"].const_value
    half = model.graph.initializers["layer.0.bias"].const_value.numpy() * np.float16(0.5)
    np.testing.assert_array_equal(written["twin"].const_value.numpy(), half)


def test_external_weights_are_mapped_and_never_written(tmp_path):
    model = parse(
        "g (float[1, 256] x) => (float[1, 256] y) { y = MatMul(x, weight) }",
        weights={"weight": np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)},
    )
    path = tmp_path / "model.onnx"
    ir.save(model, path, external_data="model.data")
    content = (tmp_path / "model.data").read_bytes()
    graph = TorchGraph(ir.load(path))
    with torch.no_grad():
        graph.get_parameter("weight").mul_(2)
    x = np.ones((1, 256), np.float32)
    found = graph(tensors({"x": x}))["y"].detach().numpy()
    np.testing.assert_allclose(found, 2 * run_torch(model, {"x": x})["y"], rtol=1e-6)
    assert (tmp_path / "model.data").read_bytes() == content
    np.testing.assert_allclose(ReferenceSession(graph.to_ir()).run({"x": x})["y"], found, rtol=1e-4, atol=1e-4)


def test_integers_and_numbers_that_operators_only_read_are_buffers():
    model = parse(
        """g (float[2, 3] x) => (float[n, m] y) {
           a = Clip(x, low)
           b = Reshape(a, shape)
           y = Add(b, shift) }""",
        weights={"low": np.float32(-0.5), "shape": np.array([3, 2]), "shift": np.float32(1)},
    )
    graph = TorchGraph(model)
    assert dict(graph.named_parameters()).keys() == {"shift"}
    assert {"low", "shape"} <= set(graph.state_dict())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    assert_same_as_reference(model, {"x": x})
    assert_same_as_reference(graph.to_ir(), {"x": x})


def test_dropout_acts_in_training_mode_only():
    graph = TorchGraph(parse("g (float[1000] x) => (float[1000] y) { y, mask = Dropout(x) }"))
    x = {"x": torch.ones(1000)}
    assert (graph(x)["y"] == 1).all()
    values = graph.train()(x)["y"].unique().tolist()
    assert values == [0, 2]
    assert (graph.eval()(x)["y"] == 1).all()


def test_subgraphs_capture_values_and_have_weights_of_their_own():
    text = """g (float[3] x, bool flag, int64 count) => (float[3] y, float[k, 3] rows) {
        shifted = Add(x, w)
        a = If(flag) <
            then_branch = yes () => (float[3] r) { r = Mul(shifted, w) },
            else_branch = no () => (float[3] r) {
                s = If(flag) < then_branch = p () => (float[3] q) { q = Neg(x) },
                               else_branch = o () => (float[3] q) { q = Sub(shifted, x) }>
                r = Add(s, s) }>
        y, rows = Loop(count, , a) <
            body = b (int64 i, bool go, float[3] state) => (bool on, float[3] next, float[3] row) {
                on = Identity(go)
                next = Add(state, shifted)
                row = Mul(next, w) }> }"""
    model = parse(text, weights={"w": np.array([1, 2, 3], np.float32)})
    x = np.array([0.5, -1, 2], np.float32)
    for flag in (True, False):
        inputs = {"x": x, "flag": np.array(flag), "count": np.array(4)}
        assert_same_as_reference(model, inputs)
    assert len(list(TorchGraph(model).parameters())) == 1


def test_local_functions_with_attributes_run():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 20, "local" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) {
            a = local.scaled <factor = 3.0> (x)
            y = local.scaled <factor = 0.5> (a) }
        <domain: "local", opset_import: ["" : 20]>
        scaled <factor> (v) => (r) {
            c = Constant <value_float : float = @factor> ()
            p = Mul(v, c)
            r = Softmax <axis = -1> (p) }""")
    assert_same_as_reference(model, {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)})


def test_an_input_with_a_default_may_be_left_out():
    model = parse(
        "g (float[2] x, float[2] scale = {3, 4}) => (float[2] y) { y = Mul(x, scale) }",
    )
    graph = TorchGraph(model)
    x = torch.ones(2)
    assert graph({"x": x})["y"].tolist() == [3, 4]
    assert graph({"x": x, "scale": 2 * x})["y"].tolist() == [2, 2]


def test_shapes_are_computed_without_reading_from_the_device():
    """A meta tensor has no values, so this fails as soon as a value is read that would stall a GPU."""
    model = parse(
        """g (float[b, s, 8] x, int64[b, s] ids) => (float[b, h, s, d] y) {
           shape = Shape(x)
           batch = Gather(shape, zero)
           length = Gather(shape, one)
           rank1 = Unsqueeze(batch, zeros)
           also = Unsqueeze(length, zeros)
           wanted = Concat<axis = 0>(rank1, also, two, four)
           rows = Gather(table, ids)
           sum = Add(x, rows)
           split = Reshape(sum, wanted)
           turned = Transpose<perm = [0, 2, 1, 3]>(split)
           size = Shape(turned)
           filled = ConstantOfShape(size)
           y = Add(turned, filled) }""",
        weights={
            "zero": np.array(0),
            "one": np.array(1),
            "zeros": np.array([0]),
            "two": np.array([2]),
            "four": np.array([4]),
            "table": np.zeros((10, 8), np.float32),
        },
    )
    graph = TorchGraph(model, device="meta")
    x = torch.zeros(3, 5, 8, device="meta")
    y = graph({"x": x, "ids": torch.zeros(3, 5, dtype=torch.int64, device="meta")})["y"]
    assert y.shape == (3, 2, 5, 4)
    assert y.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_moves_to_the_gpu_and_back():
    model = mlp()
    x = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    graph = TorchGraph(model).to("cuda")
    found = graph({"x": torch.tensor(x, device="cuda")})["y"]
    assert found.device.type == "cuda"
    expected = run_torch(model, {"x": x})["y"]
    np.testing.assert_allclose(found.detach().cpu().numpy(), expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(graph.cpu()(tensors({"x": x}))["y"].detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_an_unknown_operator_is_named_with_domain_version_and_node():
    model = parse("g (float[2] x) => (float[2] y) { [odd] y = local.Strange(x) }")
    with pytest.raises(UnsupportedOperatorError, match=r"Strange of local, opset 1, at node 'odd'"):
        TorchGraph(model)
    old = parse("g (float[2, 3] x) => (float[2, 3] y) { [old] y = Upsample(x) }", opset=6)
    with pytest.raises(UnsupportedOperatorError, match=r"Upsample of ai.onnx, opset 6, at node 'old'"):
        TorchGraph(old)


def test_an_unknown_attribute_is_refused_not_ignored():
    model = parse("g (float[2] x) => (float[2] y) { [n] y = Elu<beta = 2.0>(x) }")
    with pytest.raises(UnsupportedOperatorError, match="beta"):
        TorchGraph(model)


def test_a_failing_node_is_named():
    model = parse("g (float[2, 3] x, float[a, b] z) => (float[c, d] y) { [product] y = MatMul(x, z) }")
    with pytest.raises(ModelError, match="MatMul 'product'"):
        TorchGraph(model)(tensors({"x": np.ones((2, 3), np.float32), "z": np.ones((4, 5), np.float32)}))


@pytest.mark.parametrize(
    "inputs",
    [{}, {"z": torch.ones(1, 4)}, {"x": torch.ones(1, 4), "z": torch.ones(1)}, {"x": torch.ones(1, 4).double()}],
)
def test_data_that_does_not_fit_is_refused(inputs):
    with pytest.raises(DataError):
        TorchGraph(mlp())(inputs)


def test_an_unknown_tap_is_refused():
    with pytest.raises(ModelError, match="ghost"):
        TorchGraph(mlp())({"x": torch.ones(1, 4)}, taps=["ghost"])


def test_a_copy_is_independent():
    graph = TorchGraph(mlp()).train()
    graph.get_parameter("layer.0.bias").requires_grad_(False)
    twin = copy.deepcopy(graph)
    x = {"x": torch.ones(2, 4)}
    before = graph(x)["y"].detach()
    torch.testing.assert_close(twin(x)["y"], before)
    assert twin.training
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in graph.parameters()]
    with torch.no_grad():
        twin.get_parameter("layer.0.weight").zero_()
    torch.testing.assert_close(graph(x)["y"], before)


def test_missing_external_data_is_a_clear_error(tmp_path):
    ir.save(mlp(), tmp_path / "model.onnx", external_data="model.data", size_threshold_bytes=0)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"layer\.0\.weight"):
        TorchGraph(ir.load(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"model\.data"):
        ReferenceSession(ir.load(tmp_path / "model.onnx"))
    with pytest.raises(ModelError):
        ReferenceSession(tmp_path / "model.onnx")
