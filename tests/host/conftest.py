"""Installs made-up distributions where `importlib.metadata` finds them."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgesmith.isolation.imports import ImportAnswer

RECORD = """
from edgesmith import Guarantee, Kind, MethodRecord, hookimpl

@hookimpl
def register_methods():
    return [
        MethodRecord(
            name={name!r},
            version="1.0",
            summary="Halves the weights.",
            entry="absent.module:Halve",
            kind=Kind.GRAPH,
            options="edgesmith.host.options:NoOptions",
            guarantee=Guarantee.LOSSY,
        )
    ]
"""

Install = Callable[..., None]


@pytest.fixture
def without_first_imports(monkeypatch) -> None:
    """Import made-up plugins here at once; trying them in a process first is tested where it matters."""
    monkeypatch.setattr(
        "edgesmith.isolation.imports.try_imports", lambda imports, homes: tuple(ImportAnswer("") for _ in imports)
    )


@pytest.fixture
def install(tmp_path, monkeypatch) -> Install:
    """Return a function that installs a distribution with one plugin module for the time of a test."""
    modules: list[str] = []

    def install(
        name: str, *, version="0.3", requires="edgesmith>=0.1,<9", method="halve", source=None, editable=False
    ) -> None:
        folder = tmp_path / name
        module = name.replace("-", "_")
        modules.append(module)
        information = folder / f"{module}-{version}.dist-info"
        information.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {text}" for text in ([requires] if isinstance(requires, str) else requires)]
        (information / "METADATA").write_text("\n".join(lines) + "\n")
        (information / "entry_points.txt").write_text(f"[edgesmith]\nmain = {module}\n")
        (folder / f"{module}.py").write_text(RECORD.format(name=method) if source is None else source)
        if editable:
            (information / "direct_url.json").write_text('{"url": "file:///here", "dir_info": {"editable": true}}')
        monkeypatch.syspath_prepend(folder)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def plugin_file(tmp_path) -> Callable[..., Path]:
    """Return a function that writes a plugin file with one method."""

    def write(stem: str, method: str) -> Path:
        path = tmp_path / f"{stem}.py"
        path.write_text(RECORD.format(name=method))
        return path

    return write
