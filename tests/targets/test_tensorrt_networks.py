"""Small networks of real architectures in every format through NVIDIA's own compiler, which needs no GPU."""

import numpy as np
import pytest

from edgesmith.execution.runnable import runnable_inputs
from edgesmith.host.context import Context
from edgesmith.host.lint import run_lints
from edgesmith.host.loader import load_registry
from edgesmith.host.targets import find_target
from edgesmith_calibration.sources import ArraySource
from edgesmith_quantization.options.fp8 import QuantizeFp8Options
from edgesmith_quantization.options.int8 import QuantizeInt8Options
from edgesmith_quantization.options.weights import QuantizeWeightsOptions
from edgesmith_quantization.quantize_fp8 import QuantizeFp8
from edgesmith_quantization.quantize_int8 import QuantizeInt8
from edgesmith_quantization.quantize_weights import QuantizeWeights
from edgesmith_tensorrt import gate

pytestmark = pytest.mark.skipif(
    not any(map(gate._is_installed, gate.COMPILERS)),
    reason="TensorRT for RTX is not installed: pip install 'edgesmith[tensorrt-rtx]'",
)

REGISTRY = load_registry()
FORMATS = {
    "float": None,
    "int8": (QuantizeInt8, QuantizeInt8Options(mode="static", smoothing=False)),
    "fp8": (QuantizeFp8, QuantizeFp8Options()),
    "int4": (QuantizeWeights, QuantizeWeightsOptions(bits=4, block_size=16)),
}


@pytest.mark.parametrize(
    ("fixture", "form"),
    [
        ("tiny_cnn", "float"),
        ("tiny_cnn", "int8"),
        ("tiny_vit", "int8"),
        ("tiny_vit", "fp8"),
        ("tiny_llama", "fp8"),
        ("tiny_llama", "int4"),
    ],
)
def test_what_we_write_for_a_card_is_built_for_it(fixture, form, request, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    model = request.getfixturevalue(fixture)
    record, target = find_target(REGISTRY, "rtx-40")
    samples = [runnable_inputs(model.ir, seed=seed) for seed in range(2)]
    source = ArraySource({name: np.concatenate([each[name] for each in samples]) for name in samples[0]})

    def context(options):
        return Context(options, target.dialect, tmp_path, calibration=source)

    if FORMATS[form] is not None:
        method, options = FORMATS[form]
        model = method().apply(model, context(options))
    used = context(None)
    lowered = target.lower(model, used)  # raises where the compiler rejects it
    assert any("which is what this card runs: parsed and built" in remark for remark in used.notes.remarks)
    serious = {"zero-points", "code-types", "integer-bias", "integer-operators", "tensor-types", "dynamic-shapes"}
    found = {result.lint for result in run_lints(REGISTRY, record, lowered, target.dialect)}
    assert not found & serious
