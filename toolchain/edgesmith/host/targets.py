"""Finds the target that a user names: an installed one, or a profile file of the user's own that extends one."""

import hashlib
import platform
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgesmith.errors import PluginError, TargetError
from edgesmith.host.containment import call_plugin, plugin_fault
from edgesmith.host.dialect import Dialect
from edgesmith.host.records import TargetRecord

if TYPE_CHECKING:
    from edgesmith.host.interfaces import Target
    from edgesmith.host.registry import Registry
    from edgesmith.profile import Profile

_PROFILE_SUFFIXES = (".toml", ".json")


def find_target(registry: "Registry", name: str) -> "tuple[TargetRecord, Target]":
    """Return the record and an instance of the target called `name`.

    Args:
        registry: The installed plugins.
        name: Name of an installed target, or the path of a profile that extends one: `.toml`, or `.json` as artifacts
            keep it.

    Raises:
        PluginError: There is no such target, or it is broken.
        TargetError: The profile cannot be read, extends nothing, or a fact in it is wrong.
    """
    if not name.endswith(_PROFILE_SUFFIXES):
        record = registry.target(name)
        kind = registry.load(record)
        if not record.profile:
            return record, _start(registry, record, kind)
        from edgesmith.profile import load_profile

        return record, _start(registry, record, kind, load_profile(record.profile))
    return _extended(registry, Path(name))


def _extended(registry: "Registry", path: Path) -> "tuple[TargetRecord, Target]":
    from edgesmith.profile import extend, load_profile, parse_profile, read_facts, with_sources

    changes = read_facts(path)
    parent = str(changes.pop("extends", ""))
    try:
        base = registry.target(parent) if parent else None
    except PluginError as error:
        raise TargetError(
            f"In profile {path}, extends: {error.what}.", expected=error.expected, why=error.why, fix=error.fix
        ) from error
    if base is None or not base.profile:
        known = ", ".join(record.name for record in registry.targets() if record.profile)
        raise TargetError(
            f"Profile {path} extends {parent or 'nothing'}.",
            expected=f'a line extends = "NAME" with one of {known}',
            why="The installed target brings the code that lowers and builds for the device.",
            fix="Add that line with the target nearest to your device.",
        )
    profile = parse_profile(with_sources(extend(read_facts(base.profile), changes), changes, path), path)
    _require_own_name(registry, profile, path)
    _require_runtimes(load_profile(base.profile), profile, path)
    facts = hashlib.sha256(profile.model_dump_json().encode()).hexdigest()
    record = replace(
        base,
        name=profile.name,
        summary=profile.summary,
        # Part of every cache key: other facts are another target.
        version=f"{base.version}+{facts[:12]}",
        profile=str(path),
        extends=base.name,
        runner=base.runner if base.runner != "local" or _may_be_here(profile) else "reference",
    )
    return registry.derive(record, base), _start(registry, base, registry.load(base), profile)


def _may_be_here(profile: "Profile") -> bool:
    """Return whether the device may be this machine. Times of another architecture or system say nothing of it."""
    device = profile.device
    return (not device.architectures or platform.machine() in device.architectures) and (
        not device.systems or platform.system() in device.systems
    )


def _require_own_name(registry: "Registry", profile: "Profile", path: Path) -> None:
    if profile.name in {record.name for record in registry.targets()}:
        raise TargetError(
            f"Profile {path} is named {profile.name}, as an installed target is.",
            expected="a name of its own",
            why="Artifacts and numbers of two devices could not be told apart.",
            fix='Add a line such as name = "my-board".',
        )


def _require_runtimes(base: "Profile", profile: "Profile", path: Path) -> None:
    """Refuse a runtime that the extended target has no code for, such as one that is misspelt."""
    known = {runtime.name for runtime in base.runtimes}
    unknown = [runtime.name for runtime in profile.runtimes if runtime.name not in known]
    if unknown:
        raise TargetError(
            f"In profile {path}, the runtime {unknown[0]} is not one of {base.name}.",
            expected=" or ".join(sorted(known)),
            why="The installed target lowers for its own runtime, and the device would run another.",
            fix="Write that name, or extend the target that is made for the other runtime.",
        )


def _start(
    registry: "Registry", record: TargetRecord, kind: "type[Target]", profile: "Profile | None" = None
) -> "Target":
    """Return an instance, which has a dialect."""
    what = f"Target {record.name} {record.version} from {registry.distribution_of(record)}: its start"
    target = call_plugin(
        lambda: kind(profile) if profile is not None else kind(), what, TargetError, module=kind.__module__
    )
    dialect: object = call_plugin(lambda: getattr(target, "dialect", None), what, TargetError, module=kind.__module__)
    if not isinstance(dialect, Dialect):
        raise plugin_fault(TargetError, what, f"gave it a dialect of type {type(dialect).__name__}, not a Dialect")
    return target
