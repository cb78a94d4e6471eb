"""Writes what the pages say from the code itself: options of methods, public names, the command line. Run `make docs`.

A page of a method and the reference are written by hand; only what stands between two marks is replaced.
"""

import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main

from edgesmith.cli import app
from edgesmith.host.loader import load_registry
from edgesmith.host.options import describe_range, option_schemas
from edgesmith.host.records import MethodRecord
from edgesmith.host.registry import Registry

DOCS = Path(__file__).parent
BEGIN = "<!-- options: written by docs/generate.py -->"
END = "<!-- end of options -->"
REFERENCE = DOCS / "plugins" / "reference.md"
BEGIN_NAMES = "<!-- names: written by docs/generate.py -->"
END_NAMES = "<!-- end of names -->"


def pages() -> dict[Path, str]:
    """Return each page that holds generated text, as it should be. Pages that are missing are left out."""
    registry = load_registry(plugins=False)
    found = {page_of(record): record for record in registry.methods()}
    made = {page: with_options(page.read_text(), registry, record) for page, record in found.items() if page.exists()}
    return {**made, DOCS / "cli.md": command_line(), REFERENCE: with_names(REFERENCE.read_text())}


def page_of(record: MethodRecord) -> Path:
    """Return the page of a method."""
    return DOCS / "methods" / f"{record.name}.md"


def with_options(page: str, registry: Registry, record: MethodRecord) -> str:
    """Return a page with the table of the method's options, at its end where it had none.

    Raises:
        ValueError: The end of the table is not marked, so that what follows it could not be kept.
    """
    before, _, rest = page.partition(BEGIN)
    _, marked, after = rest.partition(END)
    if rest and not marked:
        raise ValueError(f"the page of {record.name} has {BEGIN!r} without {END!r}")
    if not rest:
        before, after = f"{page.rstrip()}\n\n## Options\n\n", "\n"
    return f"{before}{BEGIN}\n{option_table(registry, record)}\n{END}{after}"


def option_table(registry: Registry, record: MethodRecord) -> str:
    """Return the options of a method as a table."""
    rows = [
        (f"`{name}`", describe_range(schema), _default(schema), str(schema.get("description", "")))
        for name, schema in option_schemas(registry.options(record)).items()
    ]
    return _table(("option", "takes", "default", "what it sets"), rows) if rows else "There are none."


def with_names(page: str) -> str:
    """Return the reference with what each name is, from its docstring, in front of the names of a section."""
    before, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    return before + "".join(map(_with_table, sections))


def _with_table(section: str) -> str:
    section = re.sub(rf"{re.escape(BEGIN_NAMES)}.*?{re.escape(END_NAMES)}\n\n", "", section, flags=re.DOTALL)
    head, mark, rest = section.partition("::: ")
    rows = [row for path in re.findall(r"^::: ([\w.]+)$", section, re.MULTILINE) for row in _rows(path)]
    table = f"{BEGIN_NAMES}\n{_table(('name', 'what it is'), rows)}\n{END_NAMES}\n\n" if rows else ""
    return head + table + mark + rest


def _rows(path: str) -> Iterator[tuple[str, str]]:
    """Yield the name of a class, function or object with what it is; of a module all its public ones."""
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError:
        yield _row(name, getattr(importlib.import_module(module_name), name))
        return
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == path]
    for name in getattr(module, "__all__", own):
        value = getattr(module, name)
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            yield _row(f"{path}.{name}", value)


def _row(name: str, value: object) -> tuple[str, str]:
    takes = list(inspect.signature(value).parameters) if inspect.isfunction(value) else []
    return f"`{name}({', '.join(takes)})`" if takes else f"`{name}`", str(inspect.getdoc(value)).partition("\n\n")[0]


def command_line() -> str:
    """Return the page of the command line."""
    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Written by `docs/generate.py` from the commands themselves. Exit codes: 0 done, 2 an error that says what to",
        "do, faults of plugins that were contained among them, 130 after Ctrl-C, 143 after SIGTERM, 1 a fault with a",
        "traceback. A compile that misses the recipe's budget also ends with 0: the verdict says so, and so does",
        "`verdict` in what `--json` prints.",
        "",
        "Before the command:",
        "",
        _parameters(group),
    ]
    for name, command in _commands(group, "edgesmith"):
        example = str(command.epilog or "").removeprefix("Example: ")
        lines += ["", f"## {name}", "", " ".join(str(command.help).split()), ""]
        lines += [f"    {example}", ""] if example else []
        lines.append(_parameters(command))
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _parameters(command: Any) -> str:
    rows = []
    for one in command.params:
        if one.name in ("help", "install_completion", "show_completion"):
            continue
        is_option = one.opts[0].startswith("-")
        names = f"`{one.opts[0]}`" if is_option else f"`{one.name.upper()}`"
        rows.append((f"{names} {one.metavar}" if is_option and one.metavar else names, str(one.help or "")))
    return _table(("argument", "what it does"), rows)


def _default(schema: Mapping[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "required"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Bring every page up to date."""
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main()
