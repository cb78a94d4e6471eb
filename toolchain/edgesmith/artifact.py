"""The artifact: a directory with the model files, the recipe, the ledger, hashes, a validator and a report."""

import json
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
import yaml
from pydantic import ValidationError

from edgesmith.errors import DataError, MeasurementError, ModelError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.runnable import runnable_inputs
from edgesmith.files import hash_file, replace_directory
from edgesmith.graph.cost import count_cost
from edgesmith.graph.structure import find_structure
from edgesmith.host.building import build_files, finish_files
from edgesmith.host.interfaces import Build
from edgesmith.ledger import FILE_NAME as LEDGER_FILE
from edgesmith.ledger import Ledger
from edgesmith.measure.runner import Runner
from edgesmith.model import ASSETS_DIRECTORY, Model
from edgesmith.pipeline import Outcome, Workshop, noted_target
from edgesmith.plan import Plan
from edgesmith.report import render_report
from edgesmith.stage import Yardstick
from edgesmith.task import Task
from edgesmith_calibration.sources import Batch

MANIFEST_FILE = "manifest.json"
"""Marks a directory as an artifact; only such a directory, or an empty one, is ever replaced."""
TASK_FILE = "task.json"
PROFILE_FILE = "profile.json"
"""The device, where it is a profile of the user's own: all facts, with the name of the target that it extends."""
REBUILT = frozenset({"engine.plan", "engine.json"})
"""An engine, and the record with its hash. A device may build them anew, so the manifest has no hashes of them."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished compile: a directory with model, ledger, report and a validator of its own."""

    directory: Path
    ledger: Ledger

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory / "report.html"

    @property
    def entry(self) -> Path:
        """The file that a runtime opens."""
        return read_entry(self.directory)

    def __str__(self) -> str:
        return f"{self.directory}: {self.ledger.verdict}"


def read_entry(directory: Path) -> Path:
    """Return the file that a runtime opens, of the artifact in `directory`.

    Raises:
        ModelError: The manifest is damaged, or names no file in the artifact.
    """
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
        entry = directory / str(manifest["entry"])
    except FileNotFoundError as error:
        reason = f"it has no {MANIFEST_FILE}" if directory.is_dir() else "there is no such directory"
        raise ModelError(
            f"{directory} is no artifact: {reason}.",
            expected="a directory that `edgesmith compile` wrote",
            why="The manifest says which file is the model.",
            fix="Check the path, or write an artifact with `edgesmith compile SOURCE --out DIR`.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(directory, f"its {MANIFEST_FILE} cannot be read ({type(error).__name__})") from error
    if not entry.is_file() or directory.resolve() not in entry.resolve().parents:
        raise _damaged(directory, f"its {MANIFEST_FILE} names {entry.name!r}, which is no file in it")
    return entry


def changed_files(directory: Path) -> tuple[str, ...]:
    """Return which files of the artifact in `directory` are not what its manifest says; none without a manifest."""
    try:
        files = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        hashes = {str(name): str(facts["sha256"]) for name, facts in files.items() if name not in REBUILT}
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (MANIFEST_FILE,)
    return tuple(name for name, known in hashes.items() if not holds(directory / name, known))


def holds(file: Path, known: object) -> bool:
    """Return whether there is such a file, with the SHA-256 that is `known` of it."""
    return file.is_file() and hash_file(file) == known


def read_use(directory: Path) -> tuple[Task, dict[str, bytes]]:
    """Return the task of the artifact in `directory`, and the files that it travels with, such as a tokenizer.

    Raises:
        ModelError: The task is missing or damaged.
    """
    try:
        task = Task.model_validate_json((directory / TASK_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(directory, f"its {TASK_FILE} cannot be read ({type(error).__name__})") from error
    files = [path for path in (directory / ASSETS_DIRECTORY).glob("*") if path.is_file() and not path.is_symlink()]
    return task, {path.name: path.read_bytes() for path in sorted(files)}


def _damaged(directory: Path, problem: str) -> ModelError:
    return ModelError(
        f"The artifact {directory} is damaged: {problem}.",
        expected="a directory that `edgesmith compile` wrote",
        why="The manifest says which file is the model.",
        fix="Compile again.",
    )


def write_artifact(
    directory: Path, plan: Plan, source: Model, outcome: Outcome, yardstick: Yardstick, command: str, workshop: Workshop
) -> Artifact:
    """Write everything at once: either the whole artifact is at `directory` afterwards, or what was there before.

    Args:
        directory: The destination.
        plan: What was done.
        source: The model before the first step, for its structure.
        outcome: The lowered model and the ledger.
        yardstick: The runner that the validator's expected outputs come from, and the sizes that MACs are counted for.
        command: Command line that does the same again.
        workshop: Whose plugins may add sections to the report, and whether the target works in this process.

    Raises:
        OutputError: It cannot be written, or something that is no artifact stands there.
    """
    lowered, ledger = outcome.model, outcome.ledger
    with replace_directory(directory, marker=MANIFEST_FILE) as partial:
        with noted_target(plan, workshop, "building"):
            build = build_files(plan.target_record, plan.target, lowered, partial)
        with noted_target(plan, workshop, "finishing"):
            finished = finish_files(plan.target_record, plan.target, partial)
        (partial / TASK_FILE).write_text(lowered.task.model_dump_json(indent=2))
        if lowered.assets:
            (partial / ASSETS_DIRECTORY).mkdir()
            for name, content in lowered.assets.items():
                (partial / ASSETS_DIRECTORY / name).write_bytes(content)
        if plan.target_record.extends and plan.target.profile is not None:
            facts = plan.target.profile.model_dump(mode="json", exclude_none=True)
            profile = json.dumps({"extends": plan.target_record.extends} | facts, indent=2)
            (partial / PROFILE_FILE).write_text(profile, encoding="utf-8")
        recipe = plan.recipe.model_copy(update={"target": plan.target_record.name})
        recipe_data = recipe.model_dump(mode="json", exclude_defaults=True) | {"version": recipe.version}
        (partial / "recipe.yaml").write_text(yaml.safe_dump(recipe_data, sort_keys=False))
        (partial / LEDGER_FILE).write_text(ledger.model_dump_json(indent=2))
        # The structure of the source is what people recognise; fused nodes of a runtime are not.
        cost = count_cost(source.ir, yardstick.dimensions(source))
        structure = {"structure": find_structure(source.ir).to_json(), "cost": cost.to_json()}
        (partial / "structure.json").write_text(json.dumps(structure, indent=2))
        _write_validator(partial, build, lowered, yardstick.runner)
        manifest = {
            "format": 1,
            "entry": build.entry,
            "target": plan.target_record.name,
            "build": dict(build.recipe) | finished,
            "command": command,
            "versions": dict(ledger.versions),
            "files": {
                path.relative_to(partial).as_posix(): _describe(path, partial)
                for path in sorted(partial.rglob("*"))
                if path.is_file()
            },
        }
        (partial / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2))
        sections = workshop.registry.observers.extend_report(str(partial))
        render_report(partial, [section for _, section in sections])
    return Artifact(directory, ledger)


def _describe(file: Path, directory: Path) -> dict[str, object]:
    facts: dict[str, object] = {"size_bytes": file.stat().st_size}
    return facts if file.relative_to(directory).as_posix() in REBUILT else {"sha256": hash_file(file), **facts}


def _write_validator(directory: Path, build: Build, lowered: Model, runner: Runner) -> None:
    """Write inputs, the outputs they gave here, and a script that compares them anywhere.

    The inputs are random, so that no sample of the user's data travels with the artifact. A graph that does not run
    on such inputs is validated by the hashes of its files alone. Other runtimes than ONNX Runtime bring their own.
    """
    entry = directory / build.entry
    if entry.suffix != ".onnx":
        return
    copyfile(Path(__file__).with_name("artifact_validator.py"), directory / "validate.py")
    try:
        inputs = runnable_inputs(lowered.ir)
        if build.recipe.get("runtime") == "onnxruntime":
            outputs = next(iter(runner.outputs(entry, [Batch(inputs=inputs, labels=None)])))
        else:
            # The script has ONNX Runtime alone, so it sees what that computes: float16 without its rounding.
            outputs = ReferenceSession(entry).run(inputs)
    except (MeasurementError, ModelError, DataError):
        return
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    arrays |= {f"output/{name}": array for name, array in outputs.items()}
    with (directory / "samples.npz").open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
