"""The structure found in the graph, as facts and tables for the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LARGEST_TABLE = 200
_ACRONYMS = {"macs": "MACs", "mlp": "MLP", "mlps": "MLPs", "id": "ID"}


@dataclass(frozen=True, slots=True)
class StructureTable:
    """One kind of part: blocks, attentions, MLPs, convolutions."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int
    """Rows beyond the largest table that is shown."""


@dataclass(frozen=True, slots=True)
class StructureView:
    """What the page shows of the structure."""

    facts: Mapping[str, int | float | str]
    tables: tuple[StructureTable, ...]


def read_structure(data: Mapping[str, object]) -> StructureView:
    """Return facts (single values) and tables (lists of objects) of a structure file.

    Reads any JSON object, so that a structure with new parts needs no new report.
    """
    facts: dict[str, int | float | str] = {}
    tables: list[StructureTable] = []
    for group in data.values():
        for name, value in group.items() if isinstance(group, Mapping) else ():
            if isinstance(value, bool | int | float | str) and value != "":
                facts[_words(name)] = _scalar(value)
            elif isinstance(value, Sequence) and value and all(isinstance(one, Mapping) for one in value):
                tables.append(_table(_words(name), value))
    return StructureView(facts=facts, tables=tuple(table for table in tables if table.columns))


def _table(title: str, parts: Sequence[Mapping[str, object]]) -> StructureTable:
    names = list(dict.fromkeys(name for part in parts for name in part))
    columns = [name for name in names if any(_cell(part.get(name)) for part in parts)]
    rows = tuple(tuple(_cell(part.get(name)) for name in columns) for part in parts[:_LARGEST_TABLE])
    return StructureTable(
        title=title,
        columns=tuple(map(_words, columns)),
        rows=rows,
        left_out=max(0, len(parts) - _LARGEST_TABLE),
    )


def _cell(value: object) -> str:
    """Return a part's property in a few words; nested parts become their count or their own properties."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool | int | float | str):
        return str(_scalar(value))
    if isinstance(value, Mapping):
        inner = ((name, _cell(one)) for name, one in value.items() if isinstance(one, bool | int | float | str))
        return ", ".join(f"{_words(name)} {text}" for name, text in inner if text)
    if isinstance(value, Sequence):
        if all(isinstance(one, int | float | str) for one in value) and len(value) <= 4:
            return ", ".join(map(str, value))
        return f"{len(value)}"
    return str(value)


def _scalar(value: bool | int | float | str) -> int | float | str:
    return ("yes" if value else "no") if isinstance(value, bool) else value


def _words(name: object) -> str:
    words = str(name).replace("_", " ").split(" ")
    return " ".join(_ACRONYMS.get(word, word) for word in words)
