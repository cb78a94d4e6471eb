"""The public names: complete, importable, documented, typed, kept, and light until they are used.

`python tests/test_public_api.py` writes public_api.json anew, after a change that is meant.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from abc import ABC, abstractmethod
from pathlib import Path

import pytest

import edgesmith

ROOT = Path(__file__).parents[1]
KEPT = Path(__file__).with_name("public_api.json")
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "numpy")
WHEEL = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
# Without the tables of names, which are made from what is found here.
REFERENCE = re.sub(
    r"<!-- names: .*?<!-- end of names -->", "", (ROOT / "docs/plugins/reference.md").read_text(), flags=re.DOTALL
)
PUBLIC_MODULES = re.findall(r"^\| `(edgesmith[\w.]*)` \|", REFERENCE, re.MULTILINE)


def public_members(kind: type) -> dict[str, object]:
    """Return what a user may call on a public class, as far as Edgesmith wrote it, there or in a class above."""
    ours = [base for base in reversed(kind.__mro__) if base is kind or base.__module__.startswith("edgesmith")]
    return {
        name: member
        for base in ours
        for name, member in vars(base).items()
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property | classmethod))
    }


def public_names() -> dict[str, object]:
    """Return everything public by name: what the package offers, and what the modules beside it define."""
    found = {name: getattr(edgesmith, name) for name in edgesmith.__all__}
    for module in map(importlib.import_module, PUBLIC_MODULES):
        own = [name for name, one in vars(module).items() if getattr(one, "__module__", "") == module.__name__]
        names = getattr(module, "__all__", [name for name in own if not name.startswith("_")])
        found |= {f"{module.__name__}.{name}": getattr(module, name) for name in names}
    return found


def parameters(function: object) -> dict[str, str]:
    """Return how each parameter of a public callable is given, in order: "?" stands behind those with a default."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    named = [one for one in found if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return {
        one.name: ("keyword" if one.kind is one.KEYWORD_ONLY else "positional") + "?" * (one.default is not one.empty)
        for one in named
    }


def describe(value: object) -> dict[str, object]:
    """Return what a plugin may rely on of one public name."""
    if not isinstance(value, type):
        return {"parameters": parameters(value)}
    fields = [one.name for one in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    fields += list(getattr(value, "model_fields", {}))
    fields += [member.name for member in value] if issubclass(value, enum.Enum) else []
    methods = {
        member: parameters(getattr(value, member))
        for member, one in public_members(value).items()
        if not isinstance(one, property)
    }
    own = {} if issubclass(value, enum.Enum) or inspect.isabstract(value) else parameters(value)
    properties = [member for member, one in public_members(value).items() if isinstance(one, property)]
    abstract = sorted(getattr(value, "__abstractmethods__", ()))
    return {
        "parameters": own,
        "fields": sorted(fields),
        "properties": sorted(properties),
        "methods": methods,
        "abstract": abstract,
    }


def find_losses(name: str, before: dict, now: dict) -> list[str]:
    """Return what a plugin that relied on `before` misses in `now`."""
    lost = [f"{name}.{one} is gone" for one in before.get("fields", []) if one not in now.get("fields", [])]
    members = {*now.get("properties", []), *now.get("fields", [])}
    lost += [f"{name}.{one} is gone" for one in before.get("properties", []) if one not in members]
    asked = set(now.get("abstract", [])) - set(before.get("abstract", []))
    lost += [f"{name} now asks its subclasses for {one}" for one in sorted(asked)]
    calls = [(name, before["parameters"], now["parameters"])]
    for method, taken in before.get("methods", {}).items():
        if method in now.get("methods", {}):
            calls.append((f"{name}.{method}", taken, now["methods"][method]))
        else:
            lost.append(f"{name}.{method} is gone")
    return lost + [loss for call in calls for loss in find_call_losses(*call)]


def find_call_losses(call: str, old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return which calls with the parameters `old` fail with the parameters `new`."""
    lost = [f"{call} no longer takes {one}" for one in old if one not in new]
    lost += [f"{call} now asks for {one}" for one, how in new.items() if one not in old and not how.endswith("?")]
    both = [one for one in old if one in new]
    lost += [f"{call} now insists on {one}" for one in both if old[one].endswith("?") and not new[one].endswith("?")]
    before, after = ([one for one, how in each.items() if how.startswith("positional")] for each in (old, new))
    if not lost and after[: len(before)] != before:
        lost.append(f"{call} takes ({', '.join(after)}) in order, and took ({', '.join(before)})")
    return lost


@pytest.mark.parametrize("name", edgesmith.__all__)
def test_each_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(edgesmith, name)
    assert isinstance(value, str) or (value.__doc__ or "").strip()


@pytest.mark.parametrize("name", [one for one in edgesmith.__all__ if isinstance(getattr(edgesmith, one), type)])
def test_each_member_of_a_public_class_is_documented_and_typed(name: str) -> None:
    for member, found in public_members(getattr(edgesmith, name)).items():
        function = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
        assert (function.__doc__ or "").strip(), f"{name}.{member} has no docstring"
        signature = inspect.signature(function)
        untyped = [one for one in list(signature.parameters.values())[1:] if one.annotation is one.empty]
        assert not untyped and signature.return_annotation is not signature.empty, f"{name}.{member} is not typed"


def test_the_list_agrees_with_the_homes_of_the_names() -> None:
    assert set(edgesmith.__all__) == {*edgesmith._HOME, "__version__", "hookimpl"}


def test_nothing_else_is_public() -> None:
    assert set(dir(edgesmith)) == set(edgesmith.__all__)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = edgesmith.missing


def test_what_was_public_still_is_and_takes_what_it_took() -> None:
    kept, public, lost = json.loads(KEPT.read_text()), public_names(), []
    for name, before in kept.items():
        lost += find_losses(name, before, describe(public[name])) if name in public else [f"{name} is gone"]
    assert lost == [], "raise the version and note it in CHANGELOG.md, then run: python tests/test_public_api.py"


def test_new_public_names_are_noted() -> None:
    new = set(public_names()) - set(json.loads(KEPT.read_text()))
    assert new == set(), "run: python tests/test_public_api.py"


class Before(ABC):
    size: int

    @abstractmethod
    def make(self, first, second=0, *, third=0): ...

    def take(self, count):
        return count


def changed(**members: object) -> type:
    return type("Now", (Before,), {name: member for name, member in vars(Before).items() if name[0] != "_"} | members)


@pytest.mark.parametrize(
    ("members", "loss"),
    [
        ({}, None),
        ({"make": lambda self, first, second=0, fourth=0, *, third=0: 0}, None),
        ({"make": lambda self, first, second=0, third=0: 0}, None),
        ({"make": lambda self, second=0, first=0, *, third=0: 0}, "takes (self, second, first) in order"),
        ({"make": lambda self, first, fourth=0, second=0, *, third=0: 0}, "takes (self, first, fourth, second)"),
        ({"make": lambda self, first, *, second=0, third=0: 0}, "takes (self, first) in order"),
        ({"make": lambda self, first, second=0: 0}, "no longer takes third"),
        ({"make": lambda self, first, second, *, third=0: 0}, "now insists on second"),
        ({"take": lambda self, count, more: 0}, "now asks for more"),
        ({"new": abstractmethod(lambda self: 0)}, "now asks its subclasses for new"),
    ],
)
def test_what_breaks_a_plugin_is_a_loss_and_what_does_not_is_none(members: dict, loss: str | None) -> None:
    losses = find_losses("Before", describe(Before), describe(changed(**members)))
    assert [loss in one for one in losses] == ([] if loss is None else [True])


def test_importing_the_host_imports_nothing_heavy() -> None:
    code = "import sys, edgesmith, edgesmith.cli, edgesmith.host.loader as l; l.load_registry().methods();"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("folder", WHEEL)
def test_each_package_says_that_it_is_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("folder", WHEEL)
def test_every_module_has_a_docstring(folder: str) -> None:
    package = Path(folder).name
    bare = []
    for info in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
        if info.name.endswith("__main__"):
            continue
        if not (importlib.import_module(info.name).__doc__ or "").strip():
            bare.append(info.name)
    assert bare == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/plugins/*/**/*.py")), ids=lambda path: path.name)
def test_examples_use_nothing_that_is_not_public(path: Path) -> None:
    allowed = {"edgesmith", *PUBLIC_MODULES}
    assert len(allowed) > 5
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not re.match(r"edgesmith(_calibration)?(\.|$)", node.module or ""):
            continue
        assert node.module in allowed, f"{path.name} imports {node.module}"
        if node.module == "edgesmith":
            assert {one.name for one in node.names} <= set(edgesmith.__all__)


if __name__ == "__main__":
    KEPT.write_text(json.dumps({name: describe(one) for name, one in sorted(public_names().items())}, indent=1) + "\n")
