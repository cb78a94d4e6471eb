"""The method on whole graphs, run before and after."""

import edgesmith_lowrank
import numpy as np
import onnx_ir as ir
import pytest
from edgesmith_lowrank.products import find_weights
from edgesmith_lowrank.statistics import passes

from edgesmith import Model
from edgesmith.execution.reference import ReferenceSession
from edgesmith.graph.cost import count_cost
from edgesmith.testing import isolated_registry, run_method, tiny_bert, tiny_data, tiny_mlp

REGISTRY = isolated_registry(edgesmith_lowrank)
METHOD = "factorise-low-rank"


def with_rank(model: Model, rank: int, smallest: int = 16) -> Model:
    """Return a model whose larger matrices have no more than `rank` directions."""
    result = model.clone()
    for value in result.graph.initializers.values():
        array = value.const_value.numpy()
        if array.ndim == 2 and min(array.shape) >= smallest:
            u, singular, vt = np.linalg.svd(array.astype(np.float64), full_matrices=False)
            thin = (u[:, :rank] * singular[:rank]) @ vt[:rank]
            value.const_value = ir.tensor(thin.astype(array.dtype), name=value.name)
    return result


def wide_mlp(*, op_type: str = "MatMul", shared: bool = False, dtype: type = np.float32) -> Model:
    """Return x -> 24 -> 24 features through two matrices of rank 3; shared, they are one."""
    generator = np.random.default_rng(5)

    def weight(name: str) -> ir.Value:
        array = (generator.normal(size=(24, 3)) @ generator.normal(size=(3, 24)) / 24).astype(dtype)
        tensor = ir.tensor(array, name=name)
        return ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=tensor.shape)

    kind = ir.TensorType(ir.tensor(np.zeros(1, dtype)).dtype)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(["batch", 24]))
    first = weight("w1")
    second = first if shared else weight("w2")
    attributes = {"transB": 1, "alpha": 0.5} if op_type == "Gemm" else {}
    one = ir.node(op_type, [x, first], attributes, name="one")
    act = ir.node("Tanh", [one.outputs[0]], name="act")
    two = ir.node(op_type, [act.outputs[0], second], attributes, name="two")
    for node in (one, act, two):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}_output", kind
        node.outputs[0].shape = ir.Shape(["batch", 24])
    weights = [first] if shared else [first, second]
    graph = ir.Graph(
        [x], [two.outputs[0]], nodes=[one, act, two], initializers=weights, opset_imports={"": 20}, name="wide"
    )
    return tiny_mlp().with_ir(ir.Model(graph, ir_version=10))


def outputs(model: Model, data) -> np.ndarray:
    batch = next(data.batches(len(data)))
    return next(iter(ReferenceSession(model.ir).run(batch.inputs).values()))


def apply(model: Model, data, **options):
    return run_method(REGISTRY, METHOD, model, options, calibration=data)


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_of_low_rank_become_thin_and_outputs_stay(op_type, dtype):
    model = wide_mlp(op_type=op_type, dtype=dtype)
    data = tiny_data(model, samples=32)
    result = apply(model, data, energy=0.999999, multiple=1)
    # A third layer's worth of directions holds everything; each factor is rounded once to the stored type.
    np.testing.assert_allclose(outputs(result.model, data), outputs(model, data), atol=2e-5)
    assert count_cost(result.model.ir).macs < 0.3 * count_cost(model.ir).macs
    shapes = {tuple(value.shape.numpy()) for value in result.model.graph.initializers.values()}
    assert shapes == {(24, 3), (3, 24)} if op_type == "MatMul" else shapes == {(24, 3)}
    assert result.notes.remarks[-1] == "2 of 2 matrices were factorised."


def test_half_precision_stays_half_precision():
    model = wide_mlp(dtype=np.float16)
    data = tiny_data(model, samples=32)
    result = apply(model, data, energy=0.9999, multiple=1)
    assert all(value.dtype == ir.DataType.FLOAT16 for value in result.model.graph.initializers.values())
    # A hundredth of the output, by the energy left out, and roundings of 2**-11 in sums of 24 values.
    np.testing.assert_allclose(outputs(result.model, data), outputs(model, data), atol=2e-2)


def test_a_shared_matrix_is_factorised_once():
    model = wide_mlp(shared=True)
    result = apply(model, tiny_data(model, samples=32), energy=0.999999, multiple=1)
    assert sorted(result.model.graph.initializers) == ["w1_left", "w1_right"]
    assert [node.op_type for node in result.model.graph] == ["MatMul", "MatMul", "Tanh", "MatMul", "MatMul"]


def test_a_matrix_that_is_read_otherwise_is_kept_whole():
    model = wide_mlp()
    graph = model.clone().graph
    value = graph.initializers["w1"]
    graph.append(ir.node("Neg", [value], name="other"))
    weights, reasons = find_weights(graph)
    assert [weight.value.name for weight in weights] == ["w2"]
    assert reasons["one"] == "its matrix is also read by other (Neg), and would have to be kept"


def test_what_saves_nothing_is_left_alone_with_the_reason():
    model = tiny_mlp()
    result = apply(model, tiny_data(model), energy=1.0)
    assert result.model.digest() == model.digest()
    assert all("would save nothing" in reason for reason in result.notes.skipped.values())


def test_a_transformer_is_factorised_by_what_its_layers_see():
    model = with_rank(tiny_bert(), 3)
    data = tiny_data(model, samples=16)
    result = apply(model, data, energy=0.99999, multiple=1)
    assert result.relative_error < 1e-2
    before, after = count_cost(model.ir).macs, count_cost(result.model.ir).macs
    assert after < before
    assert model.digest() == with_rank(tiny_bert(), 3).digest()


def test_a_ratio_bounds_the_work():
    model = wide_mlp()
    result = apply(model, tiny_data(model, samples=32), rank_by="ratio", ratio=0.25, multiple=1)
    assert count_cost(result.model.ir).macs <= 0.25 * count_cost(model.ir).macs


def test_without_data_it_refuses_or_takes_plain_svd():
    model = wide_mlp()
    refused = run_method(REGISTRY, METHOD, model)
    assert refused.verdict.status == "refuse" and "whiten: false" in refused.verdict.reason
    plain = run_method(REGISTRY, METHOD, model, {"whiten": False, "multiple": 1})
    assert plain.notes.remarks[-1] == "2 of 2 matrices were factorised."
    options = REGISTRY.options(REGISTRY.method(METHOD))
    assert options().needs.data and not options(whiten=False).needs.data


def test_statistics_in_several_passes_are_the_same():
    model = wide_mlp()
    weights, _ = find_weights(model.graph)
    assert [len(group) for group in passes(weights, 10**9)] == [2]
    assert [len(group) for group in passes(weights, 1)] == [1, 1]


def test_nodes_that_are_named_are_skipped():
    model = wide_mlp()
    result = apply(model, tiny_data(model, samples=32), skip=("one",), multiple=1)
    assert result.notes.skipped == {"one": "it is named in `skip`"}
    assert "w1" in result.model.graph.initializers
