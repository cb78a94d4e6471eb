"""The operator table: which function computes which ONNX operator, from which opset version on.

A function takes the inputs of the node by position, with None for one left out, and its attributes by keyword. It
returns a tensor, or a tuple if the operator has several outputs. Two things are asked for by name:

- `host`: inputs that the function reads as numbers, such as a shape. It receives Python numbers or lists, so that
  a constant is converted once, when the graph is planned, and a GPU is never waited for.
- a keyword parameter called `site` receives the `Site` of the node.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx_ir as ir

Function = TypeVar("Function", bound=Callable[..., Any])


class UnsupportedFormError(Exception):
    """The operator is known, but not in this form. The executor adds which node it was."""


@dataclass(slots=True)
class Mode:
    """The state that all nodes of one TorchGraph share."""

    training: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """What an operator's function may know about the node it computes."""

    input_types: tuple[ir.DataType | None, ...] = ()
    output_types: tuple[ir.DataType | None, ...] = ()
    outputs: int = 1
    """How many outputs are wanted; the rest need not be computed."""
    mode: Mode = field(default_factory=Mode)


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table."""

    name: str
    domain: str
    since: int
    """First opset version whose meaning this row has."""
    function: Callable[..., Any]
    host: frozenset[int]
    """Positions of the inputs that are read as numbers."""
    attributes: frozenset[str]
    takes_site: bool


def scalar(value: Any) -> Any:
    """Return the number of a host input that should hold one. Exporters also write it as a list of length one."""
    while isinstance(value, list):
        (value,) = value
    return value


_TABLE: defaultdict[tuple[str, str], list[Operator]] = defaultdict(list)


def operator(
    *names: str, since: int = 1, domain: str = "", host: Sequence[str] | str = ()
) -> Callable[[Function], Function]:
    """Enter the decorated function into the table.

    Args:
        names: Operator types that the function computes.
        since: First opset version for which it is right. It stays right until a later row takes over.
        domain: Domain of the operator; empty for ONNX itself.
        host: Parameters that the function reads as numbers; "*" means all.
    """

    def enter(function: Function) -> Function:
        parameters = inspect.signature(function).parameters.values()
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        wanted = positional if host == "*" else [host] if isinstance(host, str) else list(host)
        keywords = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        for name in names:
            row = Operator(
                name=name,
                domain=domain,
                since=since,
                function=function,
                host=frozenset(positional.index(parameter) for parameter in wanted),
                attributes=frozenset(keywords - {"site"}),
                takes_site="site" in keywords,
            )
            _TABLE[domain, name].append(row)
            _TABLE[domain, name].sort(key=lambda entry: -entry.since)
        return function

    return enter


def lookup(domain: str, name: str, version: int) -> Operator | None:
    """Return the row for an operator at an opset version, or None if there is none."""
    domain = "" if domain == "ai.onnx" else domain
    return next((row for row in _TABLE.get((domain, name), ()) if row.since <= version), None)


def rows() -> Iterator[Operator]:
    """Yield every row, sorted by domain, operator and version."""
    for key in sorted(_TABLE):
        yield from sorted(_TABLE[key], key=lambda row: row.since)
