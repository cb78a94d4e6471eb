"""What methods need and what there is: data, labels, gradients, a GPU, and packages in a range of versions."""

import importlib.metadata
import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from edgesmith.errors import PluginError, RecipeError
from edgesmith.host.records import MethodRecord, TargetRecord

if TYPE_CHECKING:
    from edgesmith.host.registry import Registry

_GRADIENT_PACKAGES = ("torch",)
_RECIPES_WITHOUT_DATA = (
    "`compile` takes the recipe int8 by default; --recipe int8-dynamic and --recipe float need no data."
)


def missing_packages(requirements: Iterable[str]) -> tuple[str, ...]:
    """Return a phrase for each requirement that is not met, such as "torch>=2.8 (installed: 2.5.1)"."""
    missing = []
    for text in requirements:
        requirement = _parse(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{text} (not installed)")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            missing.append(f"{text} (installed: {version})")
    return tuple(missing)


def unmet_plugins(requirements: Iterable[str], registry: "Registry") -> tuple[str, ...]:
    """Return a phrase for each required plugin that is missing, broken or out of range."""
    unmet = []
    for text in requirements:
        requirement = _parse(text)
        name = canonicalize_name(requirement.name)
        broken = [tombstone for tombstone in registry.tombstones if tombstone.distribution == name]
        versions = {plugin.version for plugin in registry.plugins if plugin.distribution == name}
        if broken:
            unmet.append(f"{text} (broken: {broken[0].error})")
        elif not versions:
            unmet.append(f"{text} (not loaded)")
        elif not all(requirement.specifier.contains(version, prereleases=True) for version in versions):
            unmet.append(f"{text} (loaded: {', '.join(sorted(versions))})")
    return tuple(unmet)


def gpu_available() -> bool:
    """Return whether torch or ONNX Runtime finds an NVIDIA GPU. Imports whichever is installed."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        return bool(torch.cuda.is_available())
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return False


def check_needs(
    record: MethodRecord | TargetRecord,
    *,
    has_data: bool = True,
    has_labels: bool | None = None,
    has_gpu: bool | None = None,
) -> None:
    """Raise unless everything that a method or target needs is there. Loads no model.

    Args:
        record: The method or target.
        has_data: Whether calibration data is given.
        has_labels: Whether that data has labels; None where it is not known yet.
        has_gpu: Whether there is a GPU; None asks the machine, and only if the method needs one.

    Raises:
        RecipeError: Data, labels or a GPU is missing.
        PluginError: A package is missing or out of range.
    """
    if isinstance(record, TargetRecord):
        _require_packages(f"target {record.name!r}", record.packages)
        return
    label, needs = f"method {record.name!r}", record.needs
    if needs.data and not has_data:
        raise _unmet(label, "calibration data", f"Give some with --data FILE. {_RECIPES_WITHOUT_DATA}")
    if needs.labels and has_labels is False:
        raise _unmet(label, "labelled calibration data", "Give data with labels in --data FILE.")
    _require_packages(label, (*needs.packages, *(_GRADIENT_PACKAGES if needs.gradients else ())))
    if needs.gpu and not (gpu_available() if has_gpu is None else has_gpu):
        raise _unmet(label, "an NVIDIA GPU that torch or ONNX Runtime can use", "Run it on a machine with a GPU.")


def _require_packages(label: str, requirements: Iterable[str]) -> None:
    missing = missing_packages(requirements)
    if missing:
        names = " ".join(f'"{phrase.partition(" (")[0]}"' for phrase in missing)
        raise PluginError(
            f"{label} needs {', '.join(missing)}",
            expected="each needed package, in the declared range",
            why="It would fail in the middle of the run.",
            fix=f"Install it: pip install {names}{extras_with(phrase.partition(' (')[0] for phrase in missing)}",
        )


def extras_with(requirements: Iterable[str]) -> str:
    """Return an end of a sentence with the extras of Edgesmith that bring some of `requirements` in these versions."""
    wanted = {(each.name, each.specifier) for each in map(_parse, requirements)}
    about = importlib.metadata.metadata("edgesmith")
    offered = [
        each for each in map(_parse, about.get_all("Requires-Dist", ())) if (each.name, each.specifier) in wanted
    ]
    extras = [
        name
        for name in sorted(about.get_all("Provides-Extra", ()))
        if name != "dev" and any(each.marker is not None and each.marker.evaluate({"extra": name}) for each in offered)
    ]
    return f', or the extra "edgesmith[{",".join(extras)}]"' if extras else ""


def _unmet(label: str, need: str, fix: str) -> RecipeError:
    return RecipeError(
        f"{label} needs {need}, and there is none",
        expected=need,
        why="The method declares that it cannot work without.",
        fix=f"{fix} Or remove the step.",
    )


def _parse(text: str) -> Requirement:
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise PluginError(
            f"{text!r} is not a requirement",
            expected='a package with a range, such as "torch>=2.8"',
            why="It cannot be compared with what is installed.",
            fix="Correct the record or recipe that declares it.",
        ) from error
