"""Checks a record that a plugin registered, without importing what it names."""

import re
from dataclasses import fields
from enum import Enum
from typing import Any, get_args, get_origin

from packaging.requirements import InvalidRequirement, Requirement

from edgesmith.errors import PluginError
from edgesmith.host.brief import brief
from edgesmith.host.records import Guarantee, MethodRecord, Needs, Order, Record, TargetRecord

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def check_record(record: object, expected: type[Record]) -> None:
    """Raise PluginError unless `record` is a well-formed record of type `expected`."""
    if not isinstance(record, expected):
        raise _fault(
            f"a hook returned {_short(record)} where a {expected.__name__} belongs",
            f"a sequence of {expected.__name__}",
        )
    _check_types(record)
    label = f"{expected.__name__} {record.name!r}"
    if not NAME.fullmatch(record.name):
        raise _fault(f"{label} has a malformed name", "lower-case words joined by hyphens, such as 'quantize-int8'")
    if not record.version.strip():
        raise _fault(f"{label} has no version", "a version string; it is part of the cache key")
    if not record.summary.strip() or "\n" in record.summary:
        raise _fault(f"{label} has no one-line summary", "one sentence that says what the user gets")
    _check_dotted_path(label, "entry", record.entry)
    if isinstance(record, MethodRecord):
        _check_dotted_path(label, "options", record.options)
        if record.guarantee is Guarantee.TOLERANCE and not record.tolerance > 0:
            raise _fault(f"{label} promises a tolerance of {record.tolerance}", "a tolerance above 0")
        _check_requirements(label, record.needs.packages)
    if isinstance(record, TargetRecord):
        _check_requirements(label, record.packages)


def _check_types(record: Record | Needs | Order) -> None:
    label = f"{type(record).__name__} {getattr(record, 'name', '')!r}".removesuffix(" ''")
    for declared in fields(record):
        value = getattr(record, declared.name)
        if not _has_type(value, declared.type):
            raise _fault(f"{label} has {declared.name}={_short(value)}", _description(declared.type))
        if isinstance(value, Needs | Order):
            _check_types(value)


def _has_type(value: object, annotation: Any) -> bool:
    if get_origin(annotation) is tuple:
        item = get_args(annotation)[0]
        return isinstance(value, tuple) and all(_has_type(element, item) for element in value)
    if annotation in (int, float):
        return isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
    return isinstance(value, annotation)


def _description(annotation: Any) -> str:
    """Return how to write a value of a field's type."""
    if get_origin(annotation) is tuple:
        return f"a tuple of {get_args(annotation)[0].__name__}"
    if issubclass(annotation, Enum):
        return f"one of {', '.join(f'{annotation.__name__}.{member.name}' for member in annotation)}"
    return f"a value of type {annotation.__name__}"


def _check_dotted_path(label: str, field_name: str, value: str) -> None:
    if not _DOTTED_PATH.fullmatch(value):
        raise _fault(f"{label} has {field_name}={value!r}", "a dotted path such as 'my_plugin.method:MyMethod'")


def _check_requirements(label: str, packages: tuple[str, ...]) -> None:
    for text in packages:
        try:
            Requirement(text)
        except InvalidRequirement as error:
            raise _fault(f"{label} needs the package {text!r}", "a requirement such as 'torch>=2.8'") from error


def _fault(what: str, expected: str) -> PluginError:
    return PluginError(
        what,
        expected=expected,
        why="The host lists, validates, orders and caches by the record alone.",
        fix="Plugin author: correct the record. User: update the plugin or pass --disable with its name.",
    )


def _short(value: object) -> str:
    """Return a bounded representation. A plugin's own `__repr__` is not trusted to work."""
    if not isinstance(value, str | int | float | tuple | list | dict | type | None):
        return f"an object of type {type(value).__name__}"
    return brief(value)
