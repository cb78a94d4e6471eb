"""AMD Quark: static INT8 with its presets for CNNs and transformers, weights per channel."""

from benchmarks.peers import Job
from benchmarks.peers.onnxruntime import reader

PACKAGES = ("amd-quark", "onnxruntime", "onnx")


def quantize(job: Job) -> None:
    """Write the quantized file; its ModelQuantizer has unsigned activations and signed weights for processors."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from quark.onnx import ModelQuantizer
    from quark.onnx.quantization.config.config import Config
    from quark.onnx.quantization.config.legacy import QuantizationConfig

    transformer = job.settings["transformer"]
    config = QuantizationConfig(
        calibrate_method=CalibrationMethod[job.settings["calibrate"]],
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"] if transformer else [],
        extra_options={} if transformer else {"ForceQuantizeNoInputCheck": True},
    )
    ModelQuantizer(Config(global_quant_config=config)).quantize_model(str(job.model), str(job.out), reader(job))
