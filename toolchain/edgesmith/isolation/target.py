"""A target whose code runs in processes of their own: it lowers, checks and builds there as it would here."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from edgesmith.errors import StepError, TargetError
from edgesmith.host.context import Context
from edgesmith.host.interfaces import Build, Target
from edgesmith.host.verdict import Verdict
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.parent import Job, note, run_isolated, verdict_in
from edgesmith.isolation.request import Work
from edgesmith.own_code import OWN_DISTRIBUTION

if TYPE_CHECKING:
    from edgesmith.engine import EngineReport
    from edgesmith.host.records import TargetRecord
    from edgesmith.host.registry import Registry
    from edgesmith.model import Model


def apart(registry: "Registry", record: "TargetRecord", target: Target, isolation: Isolation) -> Target:
    """Return the target for a run with isolation: a stranger's in processes of its own, one of Edgesmith's as it is.

    A process costs seconds for each stage, and Edgesmith's own targets are tested together with the host.
    """
    if registry.plugin_of(record).distribution == OWN_DISTRIBUTION:
        return target
    return IsolatedTarget(registry, record, target, isolation)


class IsolatedTarget(Target):
    """Stands for `target`. What its process was ended for is an error here.

    Args:
        registry: Where the target comes from.
        record: Its record.
        target: The target, which is asked for its attributes only.
        isolation: Limits of each piece of work.
    """

    def __init__(self, registry: "Registry", record: "TargetRecord", target: Target, isolation: Isolation) -> None:
        super().__init__(target.profile)
        self.dialect, self.for_onnx_runtime = target.dialect, target.for_onnx_runtime
        self._registry, self._record, self._target, self._isolation = registry, record, target, isolation

    def check(self, model: "Model") -> Verdict:
        """Return what the target says of the model."""
        return verdict_in(self._asked("accept", model))

    def lower(self, model: "Model", context: Context[None]) -> "Model":
        """Return the lowered model."""
        job = self._job("lower")
        try:
            done, after = run_isolated(job, model, context)
        except StepError as error:
            # Whoever lowers names the target again.
            error.what = error.what.removeprefix(f"{job.author}: ")
            raise
        note(done, context)
        return after or model

    def build(self, model: "Model", directory: Path) -> Build:
        """Let the target write its files."""
        done = self._asked("build", model, directory)
        return Build(done["entry"], done["recipe"])

    def finish(self, directory: Path) -> Mapping[str, object]:
        """Let the target add what takes long."""
        facts: Mapping[str, object] = self._asked("finish", None, directory)["facts"]
        return facts

    def read_engine(self, model: "Model", layers: str, times: str = "") -> "EngineReport":
        """Return what the target reads, here: it is asked after the run."""
        return self._target.read_engine(model, layers, times)

    def _job(self, work: Work, directory: Path | None = None) -> Job:
        author = f"target {self._record.name} {self._record.version}"
        place = "" if directory is None else str(directory.resolve())
        return Job(self._registry, self._record, work, author, self._isolation, place)

    def _asked(self, work: Work, model: "Model | None", directory: Path | None = None) -> Mapping[str, Any]:
        with TemporaryDirectory(prefix="edgesmith-") as scratch:
            try:
                return run_isolated(self._job(work, directory), model, Context(None, self.dialect, Path(scratch)))[0]
            except StepError as error:
                raise TargetError(error.what, expected=error.expected, why=error.why, fix=error.fix) from error
