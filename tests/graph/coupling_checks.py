"""Shared by the coupling tests: removal must give what zeroing gives."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from edgesmith.graph.couplings import Coupling, Slot, find_couplings, remove_channels
from edgesmith.graph.edit import GraphEditor, set_initializer

Inputs = Mapping[str, NDArray]
# Zero times a shift or a spread is no zero channel, so these inputs keep their values.
KEPT = {
    ("BatchNormalization", 3),
    ("BatchNormalization", 4),
    ("Div", 1),
    ("Pow", 1),
    ("QuantizeLinear", 1),
    ("QuantizeLinear", 2),
    ("DequantizeLinear", 2),
}


def samples(*shapes: Sequence[int], name: str = "x", seed: int = 1) -> list[dict[str, NDArray]]:
    generator = np.random.default_rng(seed)
    return [{name: generator.standard_normal(shape).astype(np.float32)} for shape in shapes]


def places(coupling: Coupling) -> set[tuple[str, int]]:
    """Return the weight axes of a coupling as (initializer, axis)."""
    return {(slot.value, slot.axis) for slot in coupling.slots}


def run(model: ir.Model, inputs: Inputs) -> list[NDArray]:
    return run_all(model, [inputs])[0]


def run_all(model: ir.Model, samples: Sequence[Inputs]) -> list[list[NDArray]]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, dict(inputs)) for inputs in samples]


def with_random_weights(model: ir.Model, seed: int = 0) -> ir.Model:
    """Return the model with weights large enough that every channel shows in the outputs."""
    generator = np.random.default_rng(seed)
    result = model.clone()
    for value in result.graph.initializers.values():
        array = value.const_value.numpy()
        if array.dtype == np.float32 and array.ndim > 1:
            spread = 1.5 / np.sqrt(max(array.size // max(array.shape[-1], array.shape[0]), 1))
            set_initializer(value, generator.normal(0, spread, array.shape).astype(np.float32))
        elif array.dtype == np.float32 and array.ndim == 1 and array.size > 1 and np.ptp(array) == 0:
            set_initializer(value, (array + generator.normal(0, 0.3, array.shape)).astype(np.float32))
    return result


def zeroed(model: ir.Model, coupling: Coupling, atoms: Sequence[int], *, consumers: bool = True) -> ir.Model:
    """Return the model with some atoms set to zero in every weight that makes, scales, shifts or sums them."""
    result = model.clone()
    editor = GraphEditor(result.graph)
    readers = {node.outputs[0].name: node for node in result.graph}
    for slot in coupling.slots:
        node = readers[slot.reader]
        if (slot.role == "consumes" and not consumers) or (node.op_type, slot.port) in KEPT:
            continue
        _zero(editor, node, slot, atoms)
    return result


def _zero(editor: GraphEditor, node: ir.Node, slot: Slot, atoms: Sequence[int]) -> None:
    tensor = node.inputs[slot.port].const_value
    array = tensor.numpy().copy()
    array[(slice(None),) * slot.axis + (slot.positions(atoms),)] = 0
    node.replace_input_with(slot.port, editor.add_initializer(slot.value, array, tensor.dtype))


def subsets(coupling: Coupling, generator: np.random.Generator, count: int = 2) -> list[list[int]]:
    """Return random sets of atoms, none empty and none complete."""
    sizes = generator.integers(1, coupling.size, count) if coupling.size > 1 else np.ones(count, int)
    return [sorted(generator.choice(coupling.size, size, replace=False).tolist()) for size in sizes]


def assert_removal_is_zeroing(
    model: ir.Model,
    inputs: Sequence[Inputs],
    *,
    seed: int = 0,
    trials: int = 2,
    consumers: bool = True,
    tolerance: float = 1e-5,
) -> list[Coupling]:
    """Remove random atoms of every removable coupling and compare with zeroing them. Return these couplings."""
    generator = np.random.default_rng(seed)
    removable = [coupling for coupling in find_couplings(model) if coupling.removable]
    original = run_all(model, inputs)
    for coupling in removable:
        changes = [0.0]
        for atoms in subsets(coupling, generator, trials):
            smaller = remove_channels(model, coupling, atoms)
            assert parameters(smaller) < parameters(model)
            assert all(value.uses() for value in smaller.graph.initializers.values()), "a stale constant is left"
            expected = run_all(zeroed(model, coupling, atoms, consumers=consumers), inputs)
            for ours, theirs, before in zip(run_all(smaller, inputs), expected, original, strict=True):
                for left, right in zip(ours, theirs, strict=True):
                    np.testing.assert_allclose(left, right, atol=tolerance, rtol=tolerance)
                changes.append(distance(theirs, before))
        assert max(changes) > 10 * tolerance, "these channels show nowhere, so nothing was tested"
    return removable


def distance(first: Sequence[NDArray], second: Sequence[NDArray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(first, second, strict=True))


def parameters(model: ir.Model) -> int:
    return sum(
        value.const_value.size for value in model.graph.initializers.values() if value.dtype != ir.DataType.INT64
    )


def only(couplings: Sequence[Coupling], condition: Callable[[Coupling], bool]) -> Coupling:
    found = [coupling for coupling in couplings if condition(coupling)]
    assert len(found) == 1, [(each.size, each.reason) for each in couplings]
    return found[0]
