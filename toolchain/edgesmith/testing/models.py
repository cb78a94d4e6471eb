"""Tiny models with fixed random weights, for tests of methods."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesmith.model import Model


def tiny_mlp(*, seed: int = 0) -> "Model":
    """Return a two-layer MLP with a ReLU: input "x" float32 [batch, 8], output "y" float32 [batch, 4]."""
    import numpy as np
    import onnx_ir as ir

    from edgesmith.model import Model, Provenance
    from edgesmith.task import Task

    float32 = ir.TensorType(ir.DataType.FLOAT)
    generator = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> ir.Value:
        array = generator.standard_normal(shape).astype(np.float32) / np.float32(shape[0] ** 0.5)
        return ir.Value(name=name, const_value=ir.tensor(array, name=name), type=float32, shape=ir.Shape(shape))

    x = ir.Value(name="x", type=float32, shape=ir.Shape(["batch", 8]))
    weights = [weight("up", 8, 16), weight("up_bias", 16), weight("down", 16, 4), weight("down_bias", 4)]
    up = ir.node("Gemm", [x, weights[0], weights[1]], name="up_projection")
    activation = ir.node("Relu", [up.outputs[0]], name="activation")
    down = ir.node("Gemm", [activation.outputs[0], weights[2], weights[3]], name="down_projection")
    for node, width in ((up, 16), (activation, 16), (down, 4)):
        node.outputs[0].type, node.outputs[0].shape = float32, ir.Shape(["batch", width])
        node.outputs[0].name = f"{node.name}_output"
    y = down.outputs[0]
    y.name = "y"
    graph = ir.Graph([x], [y], nodes=[up, activation, down], initializers=weights, opset_imports={"": 20}, name="mlp")
    return Model(ir.Model(graph, ir_version=10), Task(), Provenance("tiny_mlp", "testing", f"seed {seed}"))
