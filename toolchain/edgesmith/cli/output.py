"""How commands write: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgesmith.errors import EdgesmithError


_JSON_STREAM: ContextVar[TextIO | None] = ContextVar("json_stream", default=None)


@contextmanager
def only_json_on_stdout() -> Iterator[None]:
    """Send what anybody else prints meanwhile, plugins and libraries, to standard error."""
    token = _JSON_STREAM.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _JSON_STREAM.reset(token)


def write_json(data: object) -> None:
    """Write JSON data on standard output, also while everything else is kept from there."""
    (_JSON_STREAM.get() or sys.stdout).write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(text: str) -> None:
    """Write plain text on standard output."""
    sys.stdout.write(text + "\n")


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """Write a table on standard output. Cells are plain text and are wrapped, never cut."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    write_renderable(table)


def write_renderable(renderable: "RenderableType") -> None:
    """Write anything that rich can draw on standard output."""
    from rich.console import Console

    Console(file=sys.stdout).print(renderable)


def show_line(text: str) -> None:
    """Write one line on standard error."""
    sys.stderr.write(text + "\n")


def show_error(error: "EdgesmithError") -> None:
    """Write the four parts of a refusal on standard error."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parts: Mapping[str, str] = {"expected": error.expected, "why": error.why, "next": error.fix}
    # Where nobody looks at columns, as in a log, nothing is wrapped, so that paths stay whole.
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else 10_000)
    console.print(Text.assemble(("error: ", "bold red"), (error.what, "bold")), soft_wrap=True)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column(overflow="fold")
    for label, text in parts.items():
        if text:
            grid.add_row(f"  {label}", Text(text))
    console.print(grid)
