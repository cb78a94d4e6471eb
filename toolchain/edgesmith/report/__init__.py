"""Reports of one compile: a self-contained HTML page, and a table for the terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgesmith.report.page import render_report

__all__ = ["render_report"]


def __getattr__(name: str) -> object:
    # The template engine is imported when a page is written, not when the command line starts.
    if name == "render_report":
        from edgesmith.report.page import render_report

        return render_report
    raise AttributeError(f"module 'edgesmith.report' has no attribute {name!r}")
