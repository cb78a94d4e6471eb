"""NNCF on ONNX: its default preset, and the one for transformers."""

from benchmarks.peers import Job

PACKAGES = ("nncf", "onnxruntime", "onnx")


def quantize(job: Job) -> None:
    """Write the quantized file."""
    import nncf
    import onnx

    batches = job.batches()
    quantized = nncf.quantize(
        onnx.load(job.model),
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if job.settings["transformer"] else None,
    )
    onnx.save(quantized, job.out)
