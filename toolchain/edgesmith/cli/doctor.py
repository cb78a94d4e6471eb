"""`edgesmith doctor`: everything a bug report needs, and what is missing or broken."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from edgesmith import __version__
from edgesmith.cli.output import write_json, write_text
from edgesmith.cli.settings import AsJson, registry_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from edgesmith.host.plugin import Plugin
    from edgesmith.host.registry import Registry

EXAMPLE = "edgesmith doctor > report.txt"

_DISTRIBUTION = "edgesmith"
_OPTIONAL_EXTRAS = ("torch", "tensorrt-rtx", "qnn", "executorch", "device", "loadgen")


def command(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    """Show environment, versions, and every plugin with its status and full error. Paste it into an issue."""
    report = examine(registry_of(context))
    if as_json:
        write_json(report)
    else:
        write_text(_render(report))


def examine(registry: "Registry") -> dict[str, object]:
    """Return what doctor knows, as JSON data. Imports none of the packages that it reports."""
    return {
        "edgesmith": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": _packages(),
        "plugins": [
            {
                "distribution": plugin.distribution,
                "version": plugin.version,
                "entry_point": plugin.entry_point,
                "hooks": list(plugin.hooks),
                "unmet": _unmet_packages(plugin),
            }
            for plugin in registry.plugins
        ],
        "broken": [asdict(tombstone) for tombstone in registry.tombstones],
        "clashes": _clashes(registry),
    }


def _packages() -> list[dict[str, object]]:
    """Return each package that Edgesmith declares to need, what is installed of it, and whether that is in range."""
    from packaging.requirements import Requirement

    packages: list[dict[str, object]] = []
    for requirement in map(Requirement, importlib.metadata.requires(_DISTRIBUTION) or ()):
        extra = next((one for one in ("", *_OPTIONAL_EXTRAS) if _wanted(requirement, one)), None)
        if extra is None:
            continue
        version = _version(requirement.name)
        packages.append(
            {
                "name": requirement.name,
                "range": str(requirement.specifier),
                "installed": version,
                "required": not extra,
                "extra": extra,
                "ok": version is not None and requirement.specifier.contains(version, prereleases=True),
            }
        )
    return packages


def _wanted(requirement: "Requirement", extra: str) -> bool:
    """Return whether this machine needs a package for an extra; an empty extra is Edgesmith itself."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _unmet_packages(plugin: "Plugin") -> list[str]:
    """Return what the records of a plugin need and is not installed, as "record: package"."""
    from edgesmith.host.needs import missing_packages
    from edgesmith.host.records import MethodRecord, TargetRecord

    needed = [(one.name, one.needs.packages) for one in plugin.records if isinstance(one, MethodRecord)]
    needed += [(one.name, one.packages) for one in plugin.records if isinstance(one, TargetRecord)]
    return [f"{name}: {phrase}" for name, packages in needed for phrase in missing_packages(packages)]


def _clashes(registry: "Registry") -> list[str]:
    """Return each bare name that is brought more than once, with the qualified names to use instead."""
    from edgesmith.host.registry import WORDS

    owners: dict[tuple[str, str], list[str]] = {}
    for plugin in registry.plugins:
        for record in plugin.records:
            owners.setdefault((WORDS[type(record)], record.name), []).append(registry.qualified_name(record))
    return [f"{word} {name}: {' and '.join(found)}" for (word, name), found in sorted(owners.items()) if len(found) > 1]


def _render(report: dict[str, object]) -> str:
    """Return the report as plain text, since it is pasted into issues."""
    lines = [f"{key:10} {report[key]}" for key in ("edgesmith", "python", "platform", "machine", "cores")]
    lines += ["", "packages"]
    lines += [_package_line(_mapping(package)) for package in _items(report["packages"])]
    lines += ["", "plugins"]
    for plugin in map(_mapping, _items(report["plugins"])):
        lines.append(f"  ok      {plugin['distribution']} {plugin['version']} [{plugin['entry_point']}]")
        lines.append(f"          hooks: {', '.join(map(str, _items(plugin['hooks']))) or 'none'}")
        lines += [f"          missing: {phrase}" for phrase in _items(plugin["unmet"])]
    for broken in map(_mapping, _items(report["broken"])):
        lines.append(f"  BROKEN  {broken['distribution']} {broken['version']} [{broken['entry_point']}]")
        lines.append(f"          at {broken['stage']}: {broken['error']}")
        lines += [f"          | {line}" for line in str(broken["traceback"]).splitlines()]
    clashes = _items(report["clashes"])
    if clashes:
        lines += ["", "names with two owners", *(f"  {clash}" for clash in clashes)]
    return "\n".join(lines)


def _package_line(package: dict[str, object]) -> str:
    installed = package["installed"] or "not installed"
    line = f"  {package['name']!s:26} {installed!s:14} needs {package['range'] or 'any version'}"
    if not package["required"]:
        line += f" (optional: pip install '{_DISTRIBUTION}[{package['extra']}]')"
    return (
        line if package["ok"] or (package["installed"] is None and not package["required"]) else f"{line}  <- PROBLEM"
    )


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
