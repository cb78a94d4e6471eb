"""Calls the observing hooks, one plugin at a time. An observer may never fail a run."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from edgesmith.host.containment import first_words, log_traceback
from edgesmith.host.plugin import Plugin, Trace
from edgesmith.host.records import ReportSection, StepEvent

if TYPE_CHECKING:
    from edgesmith.errors import EdgesmithError

_LOGGER = logging.getLogger(__name__)


class Observers:
    """The observing hooks of every plugin.

    A failing observer is logged once per plugin and hook, then ignored.

    Args:
        plugins: The plugins to tell, in this order.
        trace: Receives one line for each call.
    """

    def __init__(self, plugins: Sequence[Plugin], *, trace: Trace | None = None) -> None:
        self._plugins = tuple(plugins)
        self._trace = trace
        self._reported: set[tuple[str, str, str]] = set()

    def before_step(self, event: StepEvent) -> None:
        """Tell every plugin that a step starts."""
        self._tell("before_step", event=event)

    def after_step(self, event: StepEvent) -> None:
        """Tell every plugin that a step was applied or skipped."""
        self._tell("after_step", event=event)

    def on_step_error(self, event: StepEvent, error: "EdgesmithError") -> None:
        """Tell every plugin that a step failed or was refused."""
        self._tell("on_step_error", event=event, error=error)

    def extend_report(self, directory: str) -> tuple[tuple[str, ReportSection], ...]:
        """Return further report sections for the artifact in `directory`, each with "distribution version"."""
        return tuple(
            (plugin.label, section)
            for plugin, answer in self._call("extend_report", directory=directory)
            if isinstance(answer, list | tuple)
            for section in answer
            if isinstance(section, ReportSection)
        )

    def _tell(self, hook: str, **arguments: object) -> None:
        for _ in self._call(hook, **arguments):
            pass

    def _call(self, hook: str, **arguments: object) -> Iterator[tuple[Plugin, object]]:
        for plugin in self._plugins:
            if hook not in plugin.hooks:
                continue
            if self._trace is not None:
                shown = ", ".join(f"{name}={_short(value)}" for name, value in arguments.items())
                self._trace(f"{plugin.distribution}:{plugin.entry_point}.{hook}({shown})")
            try:
                answers = getattr(plugin.manager.hook, hook)(**arguments)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  an observer may raise anything, and may never fail the run
                self._report(plugin, hook, error)
                continue
            yield plugin, answers[0] if answers else None

    def _report(self, plugin: Plugin, hook: str, error: BaseException) -> None:
        fault = (plugin.distribution, plugin.entry_point, hook)
        if fault not in self._reported:
            self._reported.add(fault)
            what = f"the hook {hook} of {plugin.label}"
            _LOGGER.warning("%s failed and is ignored: %s", what, first_words(error))
            log_traceback(what, error)


def _short(value: object, limit: int = 120) -> str:
    text = str(value).splitlines()[0] if isinstance(value, Exception) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
