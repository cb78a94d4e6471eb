"""What a quantizer kept in float because it is protected stays as it is when the rest is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.recovery.recovery_models import context_for, perceptron, recover, samples, weights_of, with_weights

from edgesmith.protection import PROTECTION_ASSET, ProtectedAxis, Protection
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_weights import QuantizeWeights

WIDTH = 24
MADE = Protection(
    weights={
        "w1": {0: ProtectedAxis(length=WIDTH, kept=(1, 2))},
        "w2": {0: ProtectedAxis(length=WIDTH, kept=(1, 2)), 1: ProtectedAxis(length=WIDTH, kept=(7,))},
        "w3": {1: ProtectedAxis(length=WIDTH, kept=tuple(range(20)))},  # more than half: it stays in float altogether
    }
)


@pytest.mark.parametrize("asked", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("source_of_places", ["units", "file"])
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_training_leaves_products_in_float_alone(form: str, source_of_places: str, asked: bool, tmp_path: Path) -> None:
    source = perceptron()
    file = tmp_path / "protection.json"
    MADE.save(file)
    protect = "units" if source_of_places == "units" else file
    if protect == "units":
        source = replace(source, assets={PROTECTION_ASSET: MADE.model_dump_json().encode()})
    method, options = (
        (QuantizeInt8(), QuantizeInt8Options(protect=protect))
        if form == "int8"
        else (QuantizeWeights(), QuantizeWeightsOptions(bits=4, block_size=None, protect=protect))
    )
    quantized = method.apply(source, replace(context_for(None, samples(64)), options=options))
    # Something to train for: rounding to 8 bits alone leaves little.
    quantized = with_weights(quantized, lambda name, array: array + 0.5 if name == "b3" else None)
    again = {"protect": protect} if asked else {}
    how = {"epochs": 6, "batch_size": 16, "learning_rate": 5e-3, "outputs": "mse"}
    result = recover(quantized, context_for(source, samples(64), **how, **again))
    before, after = weights_of(quantized), weights_of(result)
    sides = ("_protected_inputs", "_protected_outputs", "_protected_places")
    fixed = {name for name in before if name.endswith(sides)}
    assert len(fixed) == 5  # inputs of w2, outputs of w1 and w2, and places for both
    fixed |= {"w3"}
    assert all(before[name] == after[name] for name in fixed)
    assert any(before[name] != after[name] for name in before.keys() - fixed)
