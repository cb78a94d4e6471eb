"""Writes a plugin project that works as it is: `edgesmith plugin new`.

The project is a distribution of its own with one small working thing, tests that include the conformance suite, and a
workflow that runs them. Its author starts from something that runs and replaces the middle.
"""

import importlib.util
import keyword
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from edgesmith import __version__
from edgesmith.errors import OutputError, PluginError
from edgesmith.files import replace_directory
from edgesmith.host.validation import NAME

KINDS = ("method", "target", "metric", "runner", "lint")
"""What a new plugin can bring."""

LONGEST_NAME = 32
"""Lines of the templates stay below the length that the project's own linter allows."""

_COMMON = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "LICENSE": "LICENSE",
    "gitignore": ".gitignore",
    "workflow.yml": ".github/workflows/test.yml",
    "test_conformance.py": "tests/test_conformance.py",
}
"""Template to file, for every kind."""

_IMPORTED: Mapping[str, tuple[str, ...]] = {
    "method": ("numpy>=1.26", "onnx_ir>=0.1.14", "pydantic>=2.7"),
    "target": ("onnx_ir>=0.1.14",),
    "metric": ("numpy>=1.26",),
    "runner": ("numpy>=1.26",),
    "lint": ("onnx_ir>=0.1.14",),
}
"""What the code of each kind imports besides Edgesmith."""


def create_plugin(name: str, kind: str, out: Path, *, taken: Collection[str] = ()) -> tuple[Path, ...]:
    """Write the project `name` into a new folder of that name in `out`, as a whole or not at all.

    Args:
        name: Name of the distribution and of the record that it brings: lower-case words joined by hyphens.
        kind: One of `KINDS`.
        out: The folder that the project's folder is created in.
        taken: Names of records that are installed already.

    Returns:
        The files, relative to the project's folder.

    Raises:
        PluginError: The name or kind is not usable.
        OutputError: Something stands there already, or it cannot be written.
    """
    _require_usable(name, kind, taken)
    folder = out / name
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(
            f"{folder} is there already",
            expected="a folder that does not exist or is empty",
            why="A new project never overwrites what somebody wrote.",
            fix="Choose another name, or another place with --out.",
        )
    files = _render(name, kind)
    with replace_directory(folder, marker="pyproject.toml") as partial:
        for path, text in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
    return tuple(files)


def _require_usable(name: str, kind: str, taken: Collection[str]) -> None:
    if kind not in KINDS:
        raise PluginError(
            f"there is no kind {kind!r} of plugin",
            expected=f"one of {', '.join(KINDS)}",
            why="Each kind has a template of its own.",
            fix=f"Write --kind {KINDS[0]}, or another of them.",
        )
    if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise _unusable(name, f"it is not lower-case words joined by hyphens, of at most {LONGEST_NAME} characters")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names:
        raise _unusable(name, f"{module!r} is a word or module of Python itself")
    if name in taken:
        raise _unusable(name, "an installed plugin brings something of that name already")
    if importlib.util.find_spec(module) is not None:
        raise _unusable(name, f"a module {module!r} can be imported already")


def _unusable(name: str, reason: str) -> PluginError:
    return PluginError(
        f"{name!r} cannot be the name of a new plugin: {reason}",
        expected="a new name such as 'halve-weights'",
        why="It becomes the name of a distribution, of a Python module, and of what recipes ask for.",
        fix="Choose another name.",
    )


def _render(name: str, kind: str) -> dict[Path, str]:
    """Return the content of each file of the project."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Python, TOML and Markdown, no HTML: nothing is to be escaped.
    environment = Environment(
        loader=PackageLoader("edgesmith.scaffold"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    module = name.replace("-", "_")
    words = {
        "name": name,
        "kind": kind,
        "module": module,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "requirements": [f"edgesmith{_core_range(__version__)}", *_IMPORTED[kind]],
    }
    package = Path("src") / module
    files = {template: Path(path) for template, path in _COMMON.items()}
    for template in environment.list_templates(filter_func=lambda each: each.startswith(f"{kind}/")):
        file = template.removeprefix(f"{kind}/").removesuffix(".jinja")
        place = Path("tests") / f"test_{module}.py" if file == "test.py" else package / file
        files[template.removesuffix(".jinja")] = place
    found = {path: environment.get_template(f"{name}.jinja").render(words) for name, path in files.items()}
    return {**found, package / "py.typed": ""}


def _core_range(version: str) -> str:
    """Return the range of versions that a plugin written today may ask for: this one up to the next breaking one.

    Before 1.0 a minor version may break.
    """
    from packaging.version import Version

    this = Version(version)
    # A range takes a pre-release only if it names one.
    lowest = this if this.is_prerelease else f"{this.major}.{this.minor}"
    return f">={lowest},<{this.major + 1}" if this.major else f">={lowest},<0.{this.minor + 1}"
