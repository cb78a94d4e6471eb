"""Checks of any record: that it loads what it names, and that registering it costs nothing."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ValidationError

from edgesmith.errors import PluginError
from edgesmith.host.options import option_schemas
from edgesmith.host.records import MethodRecord, Needs
from edgesmith.host.registry import Registry
from edgesmith.testing.conformance.bench import Bench
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "tensorflow", "jax", "numpy", "scipy")
"""Packages that a plugin imports when it works, and not when it is listed."""

_REGISTER = """
import importlib, json, pathlib, sys
from edgesmith.host.candidate import Candidate
from edgesmith.host.loader import file_candidate
path, module, heavy = json.loads(sys.argv[1])
named = Candidate(str(module), "1", str(module), lambda: importlib.import_module(module))
loaded = (file_candidate(pathlib.Path(path)) if path else named).load()
print(json.dumps([getattr(loaded, "error", ""), [name for name in heavy if name in sys.modules]]))
"""


def record_is_complete(bench: Bench[Any]) -> CheckResult:
    """The record names a class of the right kind and, for a method, options that are described one by one."""
    record, registry = bench.record, bench.registry
    try:
        registry.load(record)
        options = registry.options(record) if isinstance(record, MethodRecord) else None
    except PluginError as error:
        return failed(error.what, f"Expected: {error.expected}.")
    if options is None or not isinstance(record, MethodRecord):
        return ok()
    described = _options_are_described(options)
    return described if described.status == "failed" else _needs_are_those_of_the_defaults(record, options)


def registering_is_light(bench: Bench[Any]) -> CheckResult:
    """A fresh process that registers the plugin imports no heavy package."""
    origin = bench.origin
    if not any(origin.values()):
        return not_applicable("The plugin is no module on disk.")
    done = _registered(bench.registry, origin["file"], origin["module"])
    if done.returncode:
        return failed(
            f"registering it in a fresh process failed: {(done.stderr.splitlines() or ['no message'])[-1]}",
            "Make the module importable on its own.",
        )
    error, heavy = json.loads(done.stdout.splitlines()[-1])
    if error:
        return failed(f"in a fresh process it does not load: {error}", "Make the module importable on its own.")
    if heavy:
        return failed(
            f"registering it imports {', '.join(heavy)}",
            "Move these imports into the module that the record's `entry` names; it is imported on use.",
        )
    return ok()


@lru_cache(maxsize=16)
def _registered(_: Registry, file: str | None, module: str | None) -> subprocess.CompletedProcess[str]:
    """Return what a fresh process says that registers the plugin, asked once for all records of a registry."""
    return run_python(_REGISTER, json.dumps([file, module, HEAVY]))


def run_python(script: str, *arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that finds the same modules as this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def _options_are_described(options: type[BaseModel]) -> CheckResult:
    if not options.model_config.get("frozen"):
        return failed(
            f"{options.__name__} can be changed after it was validated",
            'Set model_config = ConfigDict(frozen=True, extra="forbid").',
        )
    if options.model_config.get("extra") != "forbid":
        return failed(
            f"{options.__name__} takes options that it does not know",
            'Set model_config = ConfigDict(frozen=True, extra="forbid"): a misspelt option would silently do nothing.',
        )
    bare = [name for name, schema in option_schemas(options).items() if not schema.get("description")]
    if bare:
        return failed(
            f"the options {', '.join(bare)} have no description",
            'Write them as name: type = Field(default=..., description="...").',
        )
    return ok()


def _needs_are_those_of_the_defaults(record: MethodRecord, options: type[BaseModel]) -> CheckResult:
    """Listings show what the record needs, and a run asks its options."""
    try:
        needs = getattr(options(), "needs", record.needs)
    except ValidationError:
        # An option must be given, so there are no defaults to compare with.
        return ok()
    if not isinstance(needs, Needs):
        return failed(f"the property needs of {options.__name__} returned {type(needs).__name__}", "Return a Needs.")
    if needs != record.needs:
        return failed(
            f"the record says {record.needs}, and its options at their defaults say {needs}",
            "Let the record say what the default options need; listings show that.",
        )
    return ok()
