"""Edgesmith: the steps of a recipe, lowered to and built for `onnx-cpu`, without the measuring that `compile` does."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import THREADS
from benchmarks.peers import Job

PACKAGES = ("edgesmith", "onnxruntime", "onnx_ir")


def quantize(job: Job) -> None:
    """Write what would ship, in a process that treats Python's garbage collector as the command line does."""
    from edgesmith.collector import collect_seldom, import_spared

    with collect_seldom(process_ends=True):
        import_spared("edgesmith.frontends.normalize")
        _quantize(job)


def _quantize(job: Job) -> None:
    from edgesmith.frontends.onnx_file import OnnxFrontend
    from edgesmith.host.context import Context
    from edgesmith.host.loader import load_registry
    from edgesmith.host.options import validate_options
    from edgesmith.host.step import run_step
    from edgesmith.host.targets import find_target
    from edgesmith_calibration.sources import ArraySource

    registry, model, source = load_registry(), OnnxFrontend().load(job.model), ArraySource(job.data)
    _, target = find_target(registry, "onnx-cpu")
    with tempfile.TemporaryDirectory(dir=job.out.parent) as folder:

        def context(options: Any) -> Context[Any]:
            return Context(options, target.dialect, Path(folder), calibration=source, threads=THREADS)

        for index, step in enumerate(job.settings["steps"], start=1):
            record = registry.method(step["method"])
            options = validate_options(record.name, registry.options(record), step["options"])
            result = run_step(registry, record, model, context(options), index=index)
            if result.verdict.status != "ok":
                raise SystemExit(f"{record.name}: {result.verdict.reason}")
            model = result.model
        built = Path(folder) / "built"
        built.mkdir()
        build = target.build(target.lower(model, context(None)), built)
        # One file, as the peers write it.
        shutil.move(built / build.entry, job.out)
