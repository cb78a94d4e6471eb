"""A quantized graph has the structure and the MACs of the float graph, whoever quantized it and in whatever form."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from edgesmith.execution.sample import sample_inputs
from edgesmith.graph.cost import count_cost
from edgesmith.graph.structure import Structure, find_structure
from edgesmith.model import Model

DIMENSIONS = {"batch": 2, "sequence": 12}


class _Samples(CalibrationDataReader):
    def __init__(self, model: ir.Model) -> None:
        self._batches = iter([sample_inputs(model, seed=seed, dimensions=DIMENSIONS) for seed in range(2)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantized(model: ir.Model, form: str, directory: Path) -> ir.Model:
    source, target = directory / "float.onnx", directory / "int8.onnx"
    ir.save(model, source)
    if form == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
    else:
        quantize_static(
            source,
            target,
            _Samples(model),
            quant_format=QuantFormat.QDQ if form == "qdq" else QuantFormat.QOperator,
            per_channel=form == "qdq",
            weight_type=QuantType.QInt8,
        )
    return ir.load(target)


def outline(structure: Structure) -> list[object]:
    """What quantization must not change."""
    rows: list[object] = [(stream.width, len(stream.blocks)) for stream in structure.streams]
    for block in structure.blocks:
        rows.append((block.norm, len(block.residuals)))
        for attention in block.attentions:
            projections = (attention.query, attention.key, attention.value, attention.output)
            rows.append([None if each is None else each.features for each in projections])
            rows.append((attention.heads, attention.kv_heads, attention.head_dim, attention.causal, attention.rotary))
        rows += [(mlp.width, mlp.activation, mlp.gated) for mlp in block.mlps]
        rows += [(each.in_channels, each.out_channels, each.depthwise) for each in block.convolutions]
    rows += [(embedding.kind, embedding.size) for embedding in structure.embeddings]
    return rows + [(head.kind, head.classes) for head in structure.heads]


# ONNX Runtime's dynamic quantizer fails on the Gemm heads of the other networks.
FORMS = [("qdq", name) for name in ("bert", "vit", "dinov2", "gpt2", "llama", "cnn")]
FORMS += [("dynamic", name) for name in ("dinov2", "gpt2", "llama")]


@pytest.mark.parametrize(("form", "name"), FORMS)
def test_structure_and_macs_survive(form: str, name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Model = request.getfixturevalue(f"tiny_{name}")
    result = quantized(model.ir, form, tmp_path)
    before, after = find_structure(model.ir), find_structure(result)
    assert outline(after) == outline(before)
    assert not before.quantized
    assert after.quantized
    original, cost = count_cost(model.ir, DIMENSIONS), count_cost(result, DIMENSIONS)
    assert cost.unknown == ()
    assert cost.macs == original.macs
    assert cost.weight_bytes < original.weight_bytes


@pytest.mark.parametrize("name", ["bert", "cnn"])
def test_macs_of_integer_operators(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The older form, where one operator holds the scales of its inputs and output."""
    model: Model = request.getfixturevalue(f"tiny_{name}")
    result = quantized(model.ir, "operator", tmp_path)
    assert any(node.op_type in ("QLinearMatMul", "QLinearConv") for node in result.graph)
    cost = count_cost(result, DIMENSIONS)
    assert cost.unknown == ()
    assert cost.macs == count_cost(model.ir, DIMENSIONS).macs
