"""Olive: its pass for static quantization, with weights per channel."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.peers import Job

PACKAGES = ("olive-ai", "onnxruntime", "onnx")


def quantize(job: Job) -> None:
    """Write the quantized file."""
    from olive.data.config import DataComponentConfig, DataConfig
    from olive.data.registry import Registry
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.quantization import OnnxStaticQuantization

    batches = [({name: array[0] for name, array in batch.items()}, 0) for batch in job.batches()]

    @Registry.register_dataset("calibration_arrays")
    def calibration_arrays(**_: Any) -> list[Any]:
        return batches

    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="calibration_arrays"),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
        dataloader_config=DataComponentConfig(params={"batch_size": 1}),
    )
    options = {"data_config": data, "per_channel": True, "activation_type": "uint8", "precision": "int8"}
    step = create_pass_from_dict(OnnxStaticQuantization, options, disable_search=True)
    with tempfile.TemporaryDirectory(dir=job.out.parent) as folder:
        result = step.run(ONNXModelHandler(str(job.model)), str(Path(folder) / "quantized.onnx"))
        shutil.move(result.model_path, job.out)
