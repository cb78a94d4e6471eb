"""Writes a classifier with layers that are wider than what passes through them, and samples for it."""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

INPUTS, WIDTH, CLASSES, DIRECTIONS, SAMPLES = 128, 512, 10, 24, 1000


def main() -> None:
    """Write model.onnx and data.npz."""
    generator = np.random.default_rng(0)

    def weight(name: str, rows: int, columns: int) -> onnx.TensorProto:
        """Return a matrix of few strong directions and much faint noise, as training leaves them."""
        strong = generator.normal(size=(rows, DIRECTIONS)) @ generator.normal(size=(DIRECTIONS, columns))
        faint = 0.1 * generator.normal(size=(rows, columns))
        return numpy_helper.from_array(((strong + faint) / rows).astype(np.float32), name)

    sizes = [(INPUTS, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, CLASSES)]
    weights = [weight(f"w{index}", *size) for index, size in enumerate(sizes)]
    nodes, value = [], "x"
    for index in range(len(sizes)):
        last = index + 1 == len(sizes)
        product = "logits" if last else f"product{index}"
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [product], f"layer{index}"))
        if not last:
            nodes.append(helper.make_node("Relu", [product], [f"active{index}"], f"relu{index}"))
            value = f"active{index}"
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", INPUTS])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "wide", [x], [logits], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, "model.onnx")
    samples = generator.normal(size=(SAMPLES, INPUTS)).astype(np.float32)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": samples})[0]
    np.savez("data.npz", x=samples, labels=np.asarray(answers).argmax(axis=1))


if __name__ == "__main__":
    main()
