"""The plugin module of the core. What Edgesmith itself brings is found through the same door as anybody's plugin."""

from collections.abc import Sequence

from edgesmith import __version__
from edgesmith.host.hookspecs import hookimpl
from edgesmith.host.records import FrontendRecord, MetricRecord, ReportSection, RunnerRecord


@hookimpl
def register_frontends() -> list[FrontendRecord]:
    """Return the readers of ONNX files, transformers checkpoints and torch modules."""
    return [
        FrontendRecord(
            name="onnx",
            version=__version__,
            summary="Reads an .onnx file of opset 9 or newer, with external data beside it.",
            entry="edgesmith.frontends.onnx_file:OnnxFrontend",
            priority=20,
        ),
        FrontendRecord(
            name="torch-module",
            version=__version__,
            summary="Exports an nn.Module in memory, with example inputs.",
            entry="edgesmith.frontends.torch_module:TorchModuleFrontend",
            priority=10,
        ),
        FrontendRecord(
            name="transformers",
            version=__version__,
            summary="Exports a Hugging Face directory or hub id, with its tokenizer or image preprocessing.",
            entry="edgesmith.frontends.transformers:TransformersFrontend",
        ),
    ]


@hookimpl
def register_metrics() -> list[MetricRecord]:
    """Return the scores against labels and against the source model."""
    return [
        MetricRecord(
            name="accuracy",
            version=__version__,
            summary="Share of samples whose highest output is the label.",
            entry="edgesmith_calibration.metrics:Accuracy",
            unit="%",
        ),
        MetricRecord(
            name="top5",
            version=__version__,
            summary="Share of samples whose label is among the five highest outputs.",
            entry="edgesmith_calibration.metrics:TopK",
            unit="%",
        ),
        MetricRecord(
            name="perplexity",
            version=__version__,
            summary="Exponential of the mean negative log-likelihood of the next token.",
            entry="edgesmith_calibration.metrics:Perplexity",
            higher_is_better=False,
        ),
        MetricRecord(
            name="cosine",
            version=__version__,
            summary="Mean cosine similarity of each sample's outputs with those of the source model.",
            entry="edgesmith_calibration.metrics:CosineSimilarity",
            needs_labels=False,
        ),
        MetricRecord(
            name="sqnr",
            version=__version__,
            summary="Signal to quantization-noise ratio of the outputs against the source model.",
            entry="edgesmith_calibration.metrics:Sqnr",
            unit="dB",
            needs_labels=False,
        ),
    ]


@hookimpl
def register_runners() -> list[RunnerRecord]:
    """Return the runner of this machine, and the one for devices that are elsewhere."""
    return [
        RunnerRecord(
            name="local",
            version=__version__,
            summary="Runs artifacts on this machine: interleaved latency, and peak memory in a child process.",
            entry="edgesmith.measure.local:LocalRunner",
        ),
        RunnerRecord(
            name="reference",
            version=__version__,
            summary="Computes outputs in ONNX Runtime here, for devices that are elsewhere; measures no time.",
            entry="edgesmith.measure.reference:ReferenceRunner",
        ),
    ]


@hookimpl
def extend_report(directory: str) -> Sequence[ReportSection]:
    """Return the runs on devices that the artifact in `directory` has been validated with."""
    from edgesmith.report.validation import validation_sections

    return validation_sections(directory)
