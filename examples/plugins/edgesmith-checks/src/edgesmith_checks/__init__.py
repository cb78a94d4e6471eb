"""A metric and a lint as an Edgesmith plugin. This module only says what there is; it imports nothing heavy."""

from edgesmith import LintRecord, MetricRecord, hookimpl

EDGESMITH_API = 1


@hookimpl
def register_metrics() -> list[MetricRecord]:
    """Return the one metric of this plugin."""
    return [
        MetricRecord(
            name="calibration-error",
            version="0.1.0",
            summary="Mean gap between how sure a classifier is and how often it is right.",
            entry="edgesmith_checks.calibration_error:CalibrationError",
            higher_is_better=False,
            unit="%",
        )
    ]


@hookimpl
def register_lints() -> list[LintRecord]:
    """Return the one lint of this plugin."""
    return [
        LintRecord(
            name="half-precision-constants",
            version="0.1.0",
            summary="Constants that are no numbers, or that float16 turned into infinity or nothing.",
            entry="edgesmith_checks.half_precision_constants:find_spoilt_constants",
        )
    ]
