"""ONNX Runtime's own tools: `quantize_dynamic`, `quantize_static`, and rounding of weights in blocks."""

from collections.abc import Iterator

import numpy as np

from benchmarks.peers import Job

PACKAGES = ("onnxruntime", "onnx")


def quantize(job: Job) -> None:
    """Write the quantized file; weights are signed and per channel, activations unsigned, which VNNI wants."""
    {"dynamic": _dynamic, "static": _static, "blocks": _blocks}[job.settings["mode"]](job)


def _dynamic(job: Job) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(job.model)
    # It transposes weights and then refuses the shapes that exporters wrote down for them.
    del model.graph.value_info[:]
    quantize_dynamic(model, job.out, per_channel=True, weight_type=QuantType.QInt8)


def _static(job: Job) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    quantize_static(
        job.model,
        job.out,
        reader(job),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[job.settings["calibrate"]],
        op_types_to_quantize=job.settings.get("operators"),
    )


def _blocks(job: Job) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        HQQWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    block_size = job.settings["block_size"]
    if job.settings["algorithm"] == "hqq":
        config = HQQWeightOnlyQuantConfig(block_size=block_size, bits=4)
    else:
        config = DefaultWeightOnlyQuantConfig(block_size=block_size, is_symmetric=False, accuracy_level=4, bits=4)
    quantizer = MatMulNBitsQuantizer(onnx.load(job.model), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(job.out))


def reader(job: Job) -> object:
    """Return the calibration data as the tool reads it."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter(job.batches())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

        def rewind(self) -> None:
            self._batches = iter(job.batches())

    return Reader()
