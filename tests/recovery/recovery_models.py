"""Damaged small models, data for them, and a short way to recover them."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tests.small_graphs import graph, node

from edgesmith.host.context import Context
from edgesmith.model import Model
from edgesmith_calibration.sources import ArraySource
from edgesmith_onnxruntime.cpu import DIALECT
from edgesmith_recovery.options.recover import RecoverOptions
from edgesmith_recovery.recover import Recover

Arrays = Mapping[str, np.ndarray]


def perceptron(seed: int = 0, *, width: int = 24, dtype: type = np.float32) -> Model:
    """Gemm, Relu, MatMul, Add and Gemm: 16 inputs, 4 classes, biases, weights stored in both orientations."""
    generator = np.random.default_rng(seed)
    weights = {
        "w1": generator.normal(0, 0.3, (width, 16)),
        "b1": generator.normal(0, 0.1, width),
        "w2": generator.normal(0, 0.3, (width, width)),
        "b2": generator.normal(0, 0.1, width),
        "w3": generator.normal(0, 0.3, (4, width)),
        "b3": np.zeros(4),
    }
    nodes = [
        node("Gemm", ["x", "w1", "b1"], "h1", transB=1),
        node("Relu", ["h1"], "r1"),
        node("MatMul", ["r1", "w2"], "m2"),
        node("Add", ["m2", "b2"], "h2"),
        node("Relu", ["h2"], "r2"),
        node("Gemm", ["r2", "w3", "b3"], "y", transB=1),
    ]
    stored = {name: array.astype(dtype) for name, array in weights.items()}
    kind = dict.fromkeys(("x", "y"), 10) if dtype is np.float16 else {}
    return graph(nodes, stored, {"x": ["batch", 16]}, types=kind)


def samples(count: int = 48, *, seed: int = 1, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(0, 1, (count, 16)).astype(dtype)}


def tokens(model: Model, count: int = 32, *, length: int = 10, seed: int = 1) -> dict[str, np.ndarray]:
    """Return token ids below 100 for every integer input; half of the samples are padded behind 7."""
    generator = np.random.default_rng(seed)
    arrays = {str(value.name): np.zeros((count, length), np.int64) for value in model.graph.inputs}
    arrays["input_ids"] = generator.integers(0, 100, (count, length))
    if "attention_mask" in arrays:
        arrays["attention_mask"] += 1
        arrays["attention_mask"][::2, 7:] = 0
    return arrays


def with_weights(model: Model, change: Any) -> Model:
    """Return a copy in which `change(name, array)` says what each float weight becomes; None leaves it."""
    copy = model.clone()
    tensors: dict[int, Any] = {}
    for name, value in copy.graph.initializers.items():
        array = value.const_value.numpy()
        if array.dtype.kind != "f":
            continue
        key = id(value.const_value)
        if key not in tensors:
            made = change(name, array)
            tensors[key] = value.const_value if made is None else ir.tensor(made.astype(array.dtype), name=name)
        value.const_value = tensors[key]
    return copy


def sparse(model: Model, share: float = 0.5) -> Model:
    """Return a copy whose matrices, tables left out, have this share of smallest entries set to zero."""

    def cut(name: str, array: np.ndarray) -> np.ndarray | None:
        if array.ndim < 2 or "embed" in name or array.size < 64:
            return None
        return np.where(np.abs(array) < np.quantile(np.abs(array), share), 0, array)

    return with_weights(model, cut)


def two_of_four(model: Model, axis: int = -1) -> Model:
    """Return a copy whose matrices keep the two largest of each four entries along `axis`."""

    def cut(name: str, array: np.ndarray) -> np.ndarray | None:
        if array.ndim != 2:
            return None
        groups = np.moveaxis(array, axis, -1).reshape(-1, 4)
        order = np.argsort(np.argsort(np.abs(groups), axis=1), axis=1)
        kept = np.where(order >= 2, groups, 0)
        return np.moveaxis(kept.reshape(np.moveaxis(array, axis, -1).shape), -1, axis)

    return with_weights(model, cut)


def context_for(
    source: Model | None,
    data: Arrays,
    *,
    labels: np.ndarray | None = None,
    place: Path | None = None,
    **options: Any,
) -> Context[RecoverOptions]:
    return Context(
        RecoverOptions(**options),
        DIALECT,
        Path(tempfile.mkdtemp()),
        calibration=ArraySource(data, labels=labels),
        source=source,
        checkpoint=place,
    )


def recover(damaged: Model, context: Context[RecoverOptions]) -> Model:
    assert Recover().check(damaged, context).status == "ok"
    return Recover().apply(damaged, context)


def array(model: Model, name: str) -> np.ndarray:
    return model.graph.initializers[name].const_value.numpy()


def weights_of(model: Model) -> dict[str, bytes]:
    return {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}
