"""Gradients of every differentiable operator family, checked numerically in double precision."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from text_graphs import parse

from edgesmith.execution.torch_graph import TorchGraph

GENERATOR = np.random.default_rng(7)


def doubles(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return GENERATOR.uniform(low, high, shape)


# family: (input shape, body, weights, opset)
GRAPHS = {
    "arithmetic": (
        [2, 3],
        "a = Mul(x, w) b = Div(a, v) c = Sub(b, x) s = Mul(c, c) t = Add(s, v) d = Pow(t, two) y = Sum(d, a, w)",
        {},
        20,
    ),
    "functions": (
        [2, 3],
        """a = Exp(x) b = Sin(a) c = Tanh(b) d = Erf(c) e = Sigmoid(d) f = Softplus(e) g = Sqrt(f) h = Log(g)
           y = Atan(h)""",
        {},
        20,
    ),
    "activations": (
        [2, 3],
        """a = Gelu(x) b = LeakyRelu<alpha = 0.3>(a) c = Elu(b) d = Celu(c) e = Selu(d) f = HardSwish(e)
           g = Mish(f) h = PRelu(g, w) y = Softmax(h)""",
        {},
        20,
    ),
    "reductions": (
        [2, 3, 4],
        """a = ReduceMean(x, axis) b = ReduceL2(x, axis) c = ReduceLogSumExp(x, axis) d = ReduceMax(x, axis)
           e = ReduceSumSquare(x, axis) f = ReduceProd(x, axis) y = Sum(a, b, c, d, e, f)""",
        {"axis": np.array([1])},
        20,
    ),
    "shapes": (
        [2, 3, 4],
        """a = Transpose<perm = [2, 0, 1]>(x) b = Reshape(a, shape) p, q = Split<axis = 0, num_outputs = 2>(b)
           c = Concat<axis = 1>(p, q) d = Slice(c, one, nine, last, step) e = Pad<mode = "reflect">(d, pads)
           f = Unsqueeze(e, one) g = Expand(f, big) y = Tile(g, big)""",
        {
            "shape": np.array([4, 6]),
            "one": np.array([1]),
            "nine": np.array([9]),
            "last": np.array([-1]),
            "step": np.array([2]),
            "pads": np.array([0, 1, 0, 1]),
            "big": np.array([1, 2, 1]),
        },
        20,
    ),
    "indexing": (
        [4, 3],
        """a = Gather(x, rows) b = GatherElements<axis = 1>(a, places) c = ScatterND<reduction = "add">(x, at, b)
           d = GatherND(c, at) e, i = TopK<axis = 1>(d, two_of) f = Trilu(e)
           flag = Greater(x, w1) g = Where(flag, x, c) h = CumSum(g, zero) s = ReduceSum(f) y = Add(h, s)""",
        {
            "rows": np.array([1, -1]),
            "places": np.array([[0, 2, 2], [1, 0, 1]]),
            "at": np.array([[0], [2]]),
            "two_of": np.array([2]),
            "zero": np.array(0),
            "w1": doubles(3),
        },
        20,
    ),
    "products": (
        [2, 3, 4],
        """a = MatMul(x, m) b = Add(a, bias) c = Einsum<equation = "bij,bkj->bik">(b, b) d = Flatten(c)
           y = Gemm<alpha = 0.5, transB = 1>(d, n, bias2)""",
        {"m": doubles(4, 5), "bias": doubles(5), "n": doubles(2, 9), "bias2": doubles(2)},
        20,
    ),
    "convolution": (
        [1, 2, 5, 5],
        """a = Conv<pads = [1, 0, 0, 1], strides = [2, 1]>(x, k, kb) b = ConvTranspose<strides = [2, 2]>(a, t)
           c = AveragePool<kernel_shape = [2, 2], ceil_mode = 1, strides = [2, 2]>(b)
           d = MaxPool<kernel_shape = [2, 2]>(c) e = GlobalAveragePool(d) y = LRN<size = 3>(d)""",
        {"k": doubles(3, 2, 3, 2), "kb": doubles(3), "t": doubles(3, 2, 2, 2)},
        20,
    ),
    "normalization": (
        [2, 4, 3],
        """a = LayerNormalization(x, s3, b3) b = BatchNormalization(a, s4, b4, mean, variance)
           c = InstanceNormalization(b, s4, b4) d = GroupNormalization<num_groups = 2>(c, s4, b4)
           e = RMSNormalization(d, s3) y = LpNormalization(e)""",
        {
            "s3": doubles(3, low=0.5),
            "b3": doubles(3),
            "s4": doubles(4, low=0.5),
            "b4": doubles(4),
            "mean": doubles(4),
            "variance": doubles(4, low=0.5),
        },
        23,
    ),
    "attention": (
        [1, 2, 3, 4],
        "a = RotaryEmbedding(x, cosine, sine) b = Attention<is_causal = 1>(a, x, v4) y = Attention(b, a, x, mask)",
        {"cosine": doubles(1, 3, 2), "sine": doubles(1, 3, 2), "v4": doubles(1, 2, 3, 4), "mask": doubles(3, 3)},
        23,
    ),
    "recurrent": (
        [3, 2, 4],
        """a, ha, ca = LSTM<hidden_size = 3, direction = "bidirectional">(x, wl, rl, bl)
           b, hb = GRU<hidden_size = 3, linear_before_reset = 1>(x, wg, rg, bg) c, hc = RNN<hidden_size = 3>(x, wr, rr)
           s = ReduceSum(a) t = Add(b, c) y = Add(s, t)""",
        {
            "wl": doubles(2, 12, 4),
            "rl": doubles(2, 12, 3),
            "bl": doubles(2, 24),
            "wg": doubles(1, 9, 4),
            "rg": doubles(1, 9, 3),
            "bg": doubles(1, 18),
            "wr": doubles(1, 3, 4),
            "rr": doubles(1, 3, 3),
        },
        20,
    ),
    "resizing": (
        [1, 1, 3, 4],
        """a = Resize<mode = "cubic">(x, , scales) b = Resize<mode = "linear", antialias = 1>(a, , , sizes)
           y = Resize<mode = "nearest">(b, , scales)""",
        {"scales": np.array([1, 1, 2, 1.5], np.float32), "sizes": np.array([1, 1, 2, 3])},
        20,
    ),
    "control": (
        [3],
        """y = If(flag) <
             then_branch = yes () => (double[3] r) { r = Mul(x, w) },
             else_branch = no () => (double[3] r) { r = Neg(x) }>""",
        {"flag": np.array(True)},
        20,
    ),
    "quantized weights": (
        [2, 4],
        "d = DequantizeLinear<axis = 1>(codes, scale, zero) y = MatMul(x, d)",
        {
            "codes": GENERATOR.integers(-128, 127, (4, 3)).astype(np.int8),
            "scale": doubles(3, low=0.01, high=0.1),
            "zero": np.array([1, -2, 3], np.int8),
        },
        20,
    ),
}


@pytest.mark.parametrize("family", GRAPHS)
def test_gradients_of_inputs_and_weights(family):
    shape, body, weights, opset = GRAPHS[family]
    common = {"w": doubles(3, low=0.5), "v": doubles(3, low=0.5, high=2.0), "two": np.array(2.0)}
    used = {name: value for name, value in common.items() if f"{name})" in body or f"{name}," in body}
    model = parse(f"g (double{shape} x) => (double y) {{ {body} }}", weights={**used, **weights}, opset=opset)
    for value in model.graph.outputs:
        value.shape = None
    graph = TorchGraph(model)
    x = torch.tensor(doubles(*shape), requires_grad=True)
    trained = [parameter for name, parameter in graph.named_parameters() if parameter.dtype == torch.float64]
    assert torch.autograd.gradcheck(lambda *_: graph({"x": x})["y"], (x, *trained), atol=1e-5)


FAKE_QUANTIZED = """g (float[1, 5] x) => (float[1, 5] y) {
    code = QuantizeLinear(x, scale, zero)
    y = DequantizeLinear(code, scale, zero) }"""


@pytest.mark.parametrize("zero", [np.int8(0), np.uint8(128), np.int16(-5)])
def test_quantization_passes_gradients_straight_through(zero):
    model = parse(FAKE_QUANTIZED, weights={"scale": np.float32(0.5), "zero": zero}, opset=21)
    graph = TorchGraph(model)
    limit = float(np.iinfo(zero.dtype).max - int(zero)) * 0.5
    x = torch.tensor([[0.3, -0.9, 0.25, 2 * limit, -4 * limit - 9]], requires_grad=True)
    y = graph({"x": x})["y"]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[1, 1, 1, 0, 0]]
    inside = torch.round(x.detach()[0, :3] / 0.5) - x.detach()[0, :3] / 0.5
    saturated = (np.iinfo(zero.dtype).max - int(zero)) + (np.iinfo(zero.dtype).min - int(zero))
    scale = dict(graph.named_parameters())["scale"]
    torch.testing.assert_close(scale.grad, inside.sum() + saturated)
    with torch.no_grad():
        torch.testing.assert_close(graph({"x": x})["y"], y)


def test_training_through_quantization_lowers_the_loss():
    generator = np.random.default_rng(0)
    weights = {
        "weight": generator.standard_normal((4, 4)).astype(np.float32),
        "scale": np.float32(0.05),
        "zero": np.int8(0),
    }
    body = """g (float[8, 4] x) => (float[8, 4] y) {
        code = QuantizeLinear(weight, scale, zero)
        used = DequantizeLinear(code, scale, zero)
        y = MatMul(x, used) }"""
    graph = TorchGraph(parse(body, weights=weights)).train()
    x = torch.tensor(generator.standard_normal((8, 4)), dtype=torch.float32)
    target = x.flip(1)
    optimizer = torch.optim.Adam(graph.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (graph({"x": x})["y"] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_every_float_initializer_gets_a_gradient_in_a_subgraph_too():
    model: ir.Model = parse(
        """g (float[3] x) => (float[3] y) {
           y = Loop(count, , x) <body = b (int64 i, bool go, float[3] s) => (bool still, float[3] t) {
               still = Identity(go)
               t = Mul(s, w) }> }""",
        weights={"w": np.array([1, 2, 3], np.float32), "count": np.array(3)},
    )
    graph = TorchGraph(model)
    graph({"x": torch.ones(3)})["y"].sum().backward()
    assert dict(graph.named_parameters())["w"].grad.tolist() == [3, 12, 27]
