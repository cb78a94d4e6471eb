"""The hooks. They discover and observe; work is done by the classes that the returned records name.

A plugin module is tiny and imports neither torch nor onnx. Implementations may take fewer arguments than a
specification, so adding an argument here is compatible and removing one is not.
"""

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from edgesmith.errors import EdgesmithError
    from edgesmith.host.records import (
        FrontendRecord,
        LintRecord,
        MethodRecord,
        MetricRecord,
        ReportSection,
        RunnerRecord,
        StepEvent,
        TargetRecord,
    )

PROJECT_NAME = "edgesmith"
API_VERSION = 1
"""The plugin contract. A plugin may set `EDGESMITH_API`; the host takes this number and the one before it."""

SHIMS: "Mapping[int, Callable[[ModuleType], None]]" = {}
"""An older contract to a function that edits a plugin module of it so that it fulfils the next one.

There is none while the present contract is the first. One stays for as long as its contract is accepted.
"""

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def register_methods() -> "Sequence[MethodRecord]":
    """Return the compression methods of this plugin."""
    raise NotImplementedError


@hookspec
def register_targets() -> "Sequence[TargetRecord]":
    """Return the devices and runtimes that this plugin can lower to."""
    raise NotImplementedError


@hookspec
def register_frontends() -> "Sequence[FrontendRecord]":
    """Return the readers that turn a source into a Model."""
    raise NotImplementedError


@hookspec
def register_runners() -> "Sequence[RunnerRecord]":
    """Return the transports that run an artifact somewhere and measure it."""
    raise NotImplementedError


@hookspec
def register_metrics() -> "Sequence[MetricRecord]":
    """Return the scores that compare outputs with labels or with the source model."""
    raise NotImplementedError


@hookspec
def register_lints() -> "Sequence[LintRecord]":
    """Return rules over a lowered graph."""
    raise NotImplementedError


@hookspec
def before_step(event: "StepEvent") -> None:
    """Observe that a step starts. An exception here is logged once and never fails the run."""


@hookspec
def after_step(event: "StepEvent") -> None:
    """Observe that a step ended well: `event.status` says whether it was applied or skipped."""


@hookspec
def on_step_error(event: "StepEvent", error: "EdgesmithError") -> None:
    """Observe that a step failed, or that its method refused the model."""


@hookspec
def extend_report(directory: str) -> "Sequence[ReportSection]":
    """Return further sections for the report of the artifact in `directory`."""
    raise NotImplementedError
