"""Edgesmith: a trained network in, a measured artifact for one device out.

Importing this package imports neither torch nor onnx; names below are loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from edgesmith.host.hookspecs import hookimpl

if TYPE_CHECKING:
    from edgesmith.api import Settings, compile
    from edgesmith.artifact import Artifact
    from edgesmith.data import RunData
    from edgesmith.errors import EdgesmithError
    from edgesmith.host.context import Context
    from edgesmith.host.dialect import Dialect, TensorFormat
    from edgesmith.host.interfaces import Build, Frontend, Method, Target
    from edgesmith.host.lint import Finding
    from edgesmith.host.records import (
        FrontendRecord,
        Guarantee,
        Kind,
        LintRecord,
        MethodRecord,
        MetricRecord,
        Needs,
        Order,
        ReportSection,
        RunnerRecord,
        StepEvent,
        TargetRecord,
        Tier,
    )
    from edgesmith.host.trial import Scoring, Trial
    from edgesmith.host.verdict import Verdict
    from edgesmith.isolation.limits import Isolation
    from edgesmith.measure.runner import Runner
    from edgesmith.model import Model, Provenance
    from edgesmith.recipe import Recipe
    from edgesmith.task import Task
    from edgesmith_calibration.metrics import Metric

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("Settings", "compile"), "edgesmith.api"),
    "Artifact": "edgesmith.artifact",
    "RunData": "edgesmith.data",
    "Finding": "edgesmith.host.lint",
    "Runner": "edgesmith.measure.runner",
    "Metric": "edgesmith_calibration.metrics",
    "EdgesmithError": "edgesmith.errors",
    "Context": "edgesmith.host.context",
    "Dialect": "edgesmith.host.dialect",
    **dict.fromkeys(("Scoring", "Trial"), "edgesmith.host.trial"),
    "TensorFormat": "edgesmith.host.dialect",
    **dict.fromkeys(("Build", "Frontend", "Method", "Target"), "edgesmith.host.interfaces"),
    **dict.fromkeys(
        (
            "FrontendRecord",
            "Guarantee",
            "Kind",
            "LintRecord",
            "MethodRecord",
            "MetricRecord",
            "Needs",
            "Order",
            "ReportSection",
            "RunnerRecord",
            "StepEvent",
            "TargetRecord",
            "Tier",
        ),
        "edgesmith.host.records",
    ),
    "Verdict": "edgesmith.host.verdict",
    "Isolation": "edgesmith.isolation.limits",
    **dict.fromkeys(("Model", "Provenance"), "edgesmith.model"),
    "Recipe": "edgesmith.recipe",
    "Task": "edgesmith.task",
}

__all__ = [
    "Artifact",
    "Build",
    "Context",
    "Dialect",
    "EdgesmithError",
    "Finding",
    "Frontend",
    "FrontendRecord",
    "Guarantee",
    "Isolation",
    "Kind",
    "LintRecord",
    "Method",
    "MethodRecord",
    "Metric",
    "MetricRecord",
    "Model",
    "Needs",
    "Order",
    "Provenance",
    "Recipe",
    "ReportSection",
    "RunData",
    "Runner",
    "RunnerRecord",
    "Scoring",
    "Settings",
    "StepEvent",
    "Target",
    "TargetRecord",
    "Task",
    "TensorFormat",
    "Tier",
    "Trial",
    "Verdict",
    "__version__",
    "compile",
    "hookimpl",
]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
