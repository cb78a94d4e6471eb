"""Code for Android (Kotlin) and iOS (Swift) that loads the result, with the names, shapes and types of its inputs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import jinja2
import onnx_ir as ir
import onnxruntime

KOTLIN_FILE, SWIFT_FILE = "Model.kt", "Model.swift"

_TYPES: Mapping[ir.DataType, tuple[str, str]] = {
    ir.DataType.FLOAT: ("FLOAT", "float"),
    ir.DataType.INT32: ("INT32", "int32"),
    ir.DataType.INT64: ("INT64", "int64"),
    ir.DataType.INT8: ("INT8", "int8"),
    ir.DataType.UINT8: ("UINT8", "uInt8"),
}
"""Types of inputs that ONNX Runtime takes from both languages, as OnnxJavaType and ORTTensorElementDataType."""

_RESERVED = frozenset(
    {
        "as", "break", "case", "class", "continue", "do", "else", "false", "for", "fun", "func", "guard",
        "if", "import", "in", "init", "interface", "is", "let", "null", "object", "package", "return", "self",
        "super", "switch", "this", "throw", "throws", "true", "try", "typealias", "typeof", "val", "var",
        "when", "where", "while",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output, in the words of both languages."""

    name: str
    identifier: str
    words: str
    """Name, type and shape for a reader."""
    literal: str
    """Its sizes as they are written in code; empty where one is open."""
    java: str
    swift: str


def write_snippets(
    directory: Path, graph: ir.Graph, file: str, settings: Mapping[str, str], *, core_ml: bool
) -> tuple[str, ...]:
    """Write `Model.swift`, and `Model.kt` where Android runs the file; return which, none where a type is in neither.

    Args:
        directory: Where they go.
        graph: The graph in `file`.
        file: Name of the model file that they load.
        settings: Entries of the session's configuration.
        core_ml: Whether the file is for Core ML, which the Swift code then asks, and for no Android.
    """
    used: set[str] = set()
    inputs = [_port(value, used) for value in graph.inputs if value.name not in graph.initializers]
    outputs = [_port(value, used) for value in graph.outputs]
    if not all(port.java for port in inputs) or not all(port.name.isprintable() for port in (*inputs, *outputs)):
        return ()
    facts = {
        "file": file,
        "stem": Path(file).stem,
        "suffix": Path(file).suffix.removeprefix("."),
        "version": onnxruntime.__version__,
        "settings": settings,
        "inputs": inputs,
        "outputs": outputs,
        "core_ml": core_ml,
        "fixed": all(port.literal for port in inputs),
    }
    # The result is source code: autoescape is for HTML, and every name goes through `quoted` or an identifier.
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    templates = resources.files(__package__) / "templates"
    languages = {SWIFT_FILE: "$"} if core_ml else {KOTLIN_FILE: "\\$", SWIFT_FILE: "$"}
    for name, dollar in languages.items():
        environment.filters["quoted"] = partial(_quoted, dollar=dollar)
        template = environment.from_string((templates / f"{name}.jinja").read_text(encoding="utf-8"))
        (directory / name).write_text(template.render(facts), encoding="utf-8")
    return tuple(languages)


def _port(value: ir.Value, used: set[str]) -> Port:
    sizes = [size if isinstance(size, int) else size.value or "?" for size in value.shape or ()]
    java, swift = _TYPES.get(value.dtype or ir.DataType.UNDEFINED, ("", ""))
    kind = value.dtype.name.lower() if value.dtype is not None else "unknown"
    literal = ", ".join(map(str, sizes)) if all(isinstance(size, int) for size in sizes) else ""
    return Port(
        name=str(value.name),
        identifier=_identifier(str(value.name), used),
        words=_one_line(f"{value.name}: {kind} [{', '.join(map(str, sizes))}]"),
        literal=literal,
        java=java,
        swift=swift,
    )


def _identifier(name: str, used: set[str]) -> str:
    """Return a name of a parameter in both languages that is not taken yet: camelCase of letters and digits."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word]
    base = "".join([*(word.lower() for word in words[:1]), *(word[:1].upper() + word[1:] for word in words[1:])])
    base = base if base and base[0].isalpha() and base not in _RESERVED else f"input{base.capitalize()}"
    chosen, number = base, 2
    while chosen in used:
        chosen, number = f"{base}{number}", number + 1
    used.add(chosen)
    return chosen


def _one_line(text: str) -> str:
    """Return text that cannot end a comment: names come from a stranger's file."""
    return re.sub(r"[^\w .,:;=+\-()\[\]{}<>@#?|]", "_", text)


def _quoted(text: str, *, dollar: str) -> str:
    """Return a string literal: both languages escape quotes and backslashes alike, and only Kotlin a dollar sign."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", dollar)
    return f'"{escaped}"'
