"""The structure found in the graph, as facts and tables for the page.

Reads the JSON form only, so that a report can be written from an artifact alone, and takes whatever part is missing
or foreign as absent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

_LARGEST_TABLE = 200
_FACT_NAMES = {"macs": "MACs"}

Part = Mapping[str, object]
_Columns = Mapping[str, Callable[[Part], str]]


@dataclass(frozen=True, slots=True)
class StructureTable:
    """One kind of part: blocks, convolutions, embeddings."""

    title: str
    count: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int
    """Parts beyond the largest table that is shown."""


@dataclass(frozen=True, slots=True)
class StructureView:
    """What the page shows of the structure."""

    summary: str
    facts: Mapping[str, int | float]
    conditions: tuple[str, ...]
    """What the number of MACs holds for, in sentences."""
    tables: tuple[StructureTable, ...]


def read_structure(data: Part) -> StructureView:
    """Return what to show of a structure file with the keys "structure" and "cost"."""
    structure = _part(data.get("structure"))
    facts: dict[str, int | float] = {}
    for name, value in _part(data.get("cost")).items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            facts[_FACT_NAMES.get(str(name), str(name).replace("_", " "))] = value
    for name in ("linears", "norms"):
        if found := _parts(structure.get(name)):
            facts[{"linears": "linear layers", "norms": "normalizations"}[name]] = len(found)
    blocks = [
        {"width": stream.get("width"), **block}
        for stream in _parts(structure.get("streams"))
        for block in _parts(stream.get("blocks"))
    ]
    tables = [_block_table(blocks)] if blocks else []
    for title, name, columns in _TABLES:
        if found := _parts(structure.get(name)):
            tables.append(_table(title, found, columns))
    conditions = _cost_conditions(_part(data.get("cost")))
    return StructureView(_text(structure.get("summary")), facts, conditions, tuple(tables))


def _cost_conditions(cost: Part) -> tuple[str, ...]:
    sizes = ", ".join(f"{name} {size}" for name, size in _part(cost.get("dimensions")).items())
    lines = [f"MACs are counted for {sizes}."] if sizes else []
    if unknown := _list(cost.get("unknown")):
        lines.append(f"MACs leave out {len(unknown)} nodes whose shapes are not known.")
    return (*lines, *(f"{_text(line)}." for line in _list(cost.get("assumptions"))))


def _block_table(blocks: Sequence[Part]) -> StructureTable:
    """Return one row per run of equal blocks."""
    described = [tuple(write(block) for write in _BLOCK.values()) for block in blocks]
    rows: list[tuple[str, ...]] = []
    first = 0
    for cells, run in groupby(described):
        length = len(list(run))
        rows.append((str(first) if length == 1 else f"{first} to {first + length - 1}", *cells))
        first += length
    return _trimmed("Blocks", len(blocks), ("block", *_BLOCK), rows)


def _table(title: str, parts: Sequence[Part], columns: _Columns) -> StructureTable:
    rows = [tuple(write(part) for write in columns.values()) for part in parts]
    return _trimmed(title, len(parts), tuple(columns), rows)


def _trimmed(title: str, count: int, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> StructureTable:
    """Return a table without the columns that are empty in all rows and the rows beyond the largest table."""
    used = [index for index in range(len(columns)) if any(cells[index] for cells in rows)]
    shown = tuple(tuple(cells[index] for index in used) for cells in rows[:_LARGEST_TABLE])
    return StructureTable(
        title, count, tuple(columns[index] for index in used), shown, max(0, len(rows) - _LARGEST_TABLE)
    )


def _attention(part: Part) -> str:
    heads = f"{_text(part.get('heads'))} heads of {_text(part.get('head_dim'))}"
    details = [heads]
    if part.get("grouped"):
        details.append(f"{_text(part.get('kv_heads'))} for keys and values")
    if part.get("causal"):
        details.append("causal")
    return ", ".join(details)


def _mlp(part: Part) -> str:
    details = [_text(part.get("width")), _words(part.get("activation")), "gated" if part.get("gated") else ""]
    return ", ".join(detail for detail in details if detail)


def _of_residuals(name: str, write: Callable[[Part], str]) -> Callable[[Part], str]:
    """Return a column that joins the parts called `name` of all residual branches of a block."""

    def join(block: Part) -> str:
        found = [part for residual in _parts(block.get("residuals")) for part in _parts(residual.get(name))]
        return "; ".join(dict.fromkeys(filter(None, map(write, found))))

    return join


def _convolution(part: Part) -> str:
    kind = next((kind for kind in ("depthwise", "pointwise", "transposed") if part.get(kind)), "")
    return f"{kind} {_by(part.get('kernel'))}".strip()


def _field(name: str) -> Callable[[Part], str]:
    """Return a column with a number or a name as it stands in the graph, so that it can be copied into a recipe."""
    return lambda part: _text(part.get(name))


def _term(name: str) -> Callable[[Part], str]:
    """Return a column with a term of the structure, as words."""
    return lambda part: _words(part.get(name))


_BLOCK: _Columns = {
    "width": _field("width"),
    "norm": _term("norm"),
    "attention": _of_residuals("attentions", _attention),
    "MLP": _of_residuals("mlps", _mlp),
    "convolutions": _of_residuals("convolutions", _convolution),
}

_TABLES: tuple[tuple[str, str, _Columns], ...] = (
    ("Attention outside blocks", "attentions", {"attention": _attention, "value": _field("context")}),
    (
        "Convolutions",
        "convolutions",
        {
            "kernel": _convolution,
            "channels": lambda part: f"{_text(part.get('in_channels'))} to {_text(part.get('out_channels'))}",
            "groups": _field("groups"),
            "stride": lambda part: _by(part.get("strides")),
            "activation": _term("activation"),
            "node": _field("node"),
        },
    ),
    (
        "Recurrent layers",
        "recurrent",
        {"kind": _field("op_type"), "hidden": _field("hidden_size"), "node": _field("node")},
    ),
    (
        "Embeddings",
        "embeddings",
        {
            "kind": _term("kind"),
            "rows": _field("rows"),
            "size": _field("size"),
            "patch": lambda part: _by(part.get("patch")),
            "table": _field("table"),
        },
    ),
    (
        "Heads",
        "heads",
        {
            "kind": _term("kind"),
            "classes": _field("classes"),
            "tied": lambda part: "to the embedding" if part.get("tied") else "",
            "output": _field("output"),
        },
    ),
    (
        "Quantized products",
        "quantized_products",
        {"operands": _field("types"), "form": _field("form"), "operator": _field("op_type"), "node": _field("node")},
    ),
)


def _part(value: object) -> Part:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _parts(value: object) -> list[Part]:
    return [_part(one) for one in _list(value)]


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return _text(value.get("kind") or value.get("op_type"))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value)


def _words(value: object) -> str:
    return _text(value).replace("_", " ")


def _by(value: object) -> str:
    return "×".join(map(_text, value)) if isinstance(value, list) else _text(value)
