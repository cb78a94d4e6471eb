"""Folded graphs in ONNX Runtime and torch, and what is stored of shared weights once they are quantized and lowered."""

import numpy as np
import pytest
import torch
from tests.folding.folding_models import deep, inputs_of, remove
from tests.folding.test_shared_weights import layer_bytes, shared, stored_bytes
from tests.recovery.recovery_models import context_for, recover
from tests.small_graphs import context, lower, quantize, run

from edgesmith.execution.torch_graph import TorchGraph
from edgesmith.graph.structure import find_structure
from edgesmith.model import Model
from edgesmith.serialization import write_onnx
from edgesmith_calibration.sources import ArraySource
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_weights import QuantizeWeights
from edgesmith_recovery.reconstruction.distance import output_error

GROUP = (1, 2, 3)


def quantized(model: Model, data: dict[str, np.ndarray], form: str) -> Model:
    if form.startswith("int8"):
        return quantize(model, data, mode=form.partition(" ")[2])
    options = QuantizeWeightsOptions(bits=int(form.partition(" ")[0]))
    return QuantizeWeights().apply(model, context(options, data))


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_folded_graphs_give_the_same_logits_in_onnx_runtime_and_in_torch(name):
    """Quality is measured in ONNX Runtime, and gates and cures train in torch."""
    model = deep(name)
    data = inputs_of(model, 4)
    folded = remove(model, data, blocks=(1,), compensation="product")
    folded = shared(folded, data, groups=((1, 2),), correction_rank=2)
    tensors = {key: torch.from_numpy(array) for key, array in data.items()}
    with torch.no_grad():
        in_torch = TorchGraph(folded.ir)(tensors)
    for key, array in run(folded, data).items():
        # Sums of up to 64 products of float32 in another order, of outputs below 10: 64 * 2^-24 * 10 is 4e-5.
        np.testing.assert_allclose(in_torch[key].numpy(), array, rtol=0, atol=1e-4)


@pytest.mark.parametrize("rank", [0, 2])
def test_stored_bytes_are_those_of_the_formula(rank):
    model = deep("llama")
    result = shared(model, inputs_of(model, 4), groups=(GROUP,), correction_rank=rank)
    layers = [linear for linear in find_structure(model.ir).linears if linear.weight.startswith("block1.")]
    assert len(layers) == 7
    # A correction is two factors in float32 for each matrix of each block, and leaves biases private.
    corrections = sum(4 * rank * (linear.in_features + linear.out_features) for linear in layers)
    biases = sum(4 * linear.out_features for linear in layers if rank and linear.bias is not None)
    expected = stored_bytes(model) - (len(GROUP) - 1) * (layer_bytes(model, 1) - biases) + len(GROUP) * corrections
    assert stored_bytes(result) == expected
    assert all(value.uses() for value in result.graph.initializers.values())


@pytest.mark.parametrize("form", ["int8 static", "int8 dynamic", "8 bits", "4 bits"])
def test_shared_weights_are_written_once_however_they_are_quantized(form, tmp_path):
    model = deep("llama")
    data = inputs_of(model, 4)
    saved = []
    for number, each in enumerate((model, shared(model, groups=(GROUP,), weights="first"))):
        small = quantized(each, data, form)
        sizes = []
        for stage, graph in (("quantized", small), ("lowered", lower(small, data))):
            file = tmp_path / f"{stage}{number}.onnx"
            write_onnx(graph.ir, file)
            sizes.append(file.stat().st_size)
        saved.append(sizes)
    one_block = sum(
        value.const_value.size
        for name, value in model.graph.initializers.items()
        if name.startswith("block1.") and len(value.shape) == 2
    )
    bits = 4 if form == "4 bits" else 8
    for before, after in zip(*saved, strict=True):
        assert before - after >= (len(GROUP) - 1) * one_block * bits // 8


@pytest.mark.parametrize("parameters", ["all", "low-rank"])
def test_shared_blocks_stay_shared_while_they_are_cured(parameters):
    model = deep("llama")
    data = inputs_of(model, 32)
    # Weighted weights with corrections are so close already that a short cure has little left to do.
    small = shared(model, data, groups=(GROUP,), weights="mean", correction_rank=2)
    training = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "labels_weight": 0.0}
    cured = recover(small, context_for(model, data, parameters=parameters, **training))
    before, after = (
        output_error(each.ir, model.ir, ArraySource(inputs_of(model, 16, seed=2)), None, batch_size=8, threads=1)
        for each in (small, cured)
    )
    assert after < 0.9 * before
    assert stored_bytes(cured) == stored_bytes(small)
    for name, value in small.graph.initializers.items():
        assert len(cured.graph.initializers[name].uses()) == len(value.uses())
