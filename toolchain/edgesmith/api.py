"""`edgesmith.compile`: the whole job from Python. The command line is a thin layer over it."""

import shlex
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edgesmith.artifact import MANIFEST_FILE, Artifact, read_entry, read_use, write_artifact
from edgesmith.data import RandomInputs, RunData, choose_data, first_batch, fixed_batch_size
from edgesmith.device.address import parse_address
from edgesmith.device.plan import DevicePlan
from edgesmith.device.runtimes import ONNX_RUNTIME, own_runtime
from edgesmith.errors import ModelError, RecipeError
from edgesmith.files import require_replaceable, require_writable
from edgesmith.fixed_sizes import fix_sizes
from edgesmith.graph.outputs import passed_over
from edgesmith.graph.structure import find_structure, label_values
from edgesmith.host.containment import call_plugin, first_words, log_traceback, plugin_fault
from edgesmith.host.loader import load_registry
from edgesmith.host.needs import check_needs
from edgesmith.isolation.limits import Isolation
from edgesmith.isolation.metric import IsolatedMetrics
from edgesmith.isolation.target import apart
from edgesmith.measure.contained import ContainedRunner, MetricMaker
from edgesmith.measure.machine import library_versions, usable_cores
from edgesmith.measure.runner import LatencyPlan
from edgesmith.model import Model
from edgesmith.own_code import OWN_DISTRIBUTION
from edgesmith.pipeline import Workshop, run_plan
from edgesmith.plan import Plan, make_plan
from edgesmith.progress import Progress, SilentProgress
from edgesmith.recipe import Recipe, load_recipe
from edgesmith.serialization import PROCESSOR_DOMAINS, require_model_file
from edgesmith.stage import Yardstick
from edgesmith.store import Store, make_key

if TYPE_CHECKING:
    from edgesmith.host.interfaces import Frontend
    from edgesmith.host.records import FrontendRecord, MetricRecord
    from edgesmith.host.registry import Registry
    from edgesmith.measure.runner import Clock
    from edgesmith_calibration.metrics import Metric
    from edgesmith_calibration.spec import DataSpec

AnswerT = TypeVar("AnswerT")


@dataclass(frozen=True, slots=True)
class Settings:
    """How a compile runs. Threads change sums of floats in the last bit; where times decide, the device decides too."""

    threads: int | None = None
    """Intra-op threads for calibration and measurement, here and on the device; None takes the usable cores of each."""
    batch_size: int = 1
    """Samples per run when latency and memory are measured."""
    store: Path | None = None
    """Where finished steps are kept; None takes the user's cache directory."""
    registry: "Registry | None" = None
    """Plugins to use; None loads the installed ones."""
    command: str = ""
    """Command line to record for reproduction; empty writes one that is as close as words come."""
    isolation: Isolation | None = None
    """Runs each step in a process of its own, within these limits; None runs all of them in this one."""
    progress: Progress = field(default_factory=SilentProgress)
    latency_plan: LatencyPlan = field(default_factory=LatencyPlan)
    on: str = ""
    """Device to time on: local, ssh://user@host[:port] or adb://serial. Empty times with the target's runner, if it has
    times. Outputs, memory and metric come from that runner either way."""
    device: DevicePlan = field(default_factory=DevicePlan)
    """How models run on that device. Its `threads`, where not 0, hold there in place of those above."""


def compile(
    source: object,
    *,
    out: str | Path,
    target: str | None = None,
    recipe: "str | Path | Mapping[str, object] | Recipe" = "int8",
    data: "str | Path | DataSpec | Mapping[str, object] | RunData | None" = None,
    example_inputs: object = None,
    settings: Settings | None = None,
) -> Artifact:
    """Compile a trained network into a measured artifact for one target.

    Args:
        source: A Hugging Face directory or hub id, an `.onnx` file, an artifact, an Edgesmith model directory, a
            Model, or an `nn.Module` together with `example_inputs`.
        out: Directory of the artifact. It must be new, empty, or an earlier artifact, which is replaced at the end.
        target: Target name; None takes the recipe's, or `onnx-cpu`.
        recipe: A file, the name of a bundled recipe, a mapping, or a Recipe.
        data: A file or folder with samples, a data description (YAML), or opened sources. Calibration and
            evaluation samples are kept apart. None measures on random inputs, without a metric from labels.
        example_inputs: For an `nn.Module`: a tensor, tuple or dict that its forward accepts.
        settings: Threads, store, progress and the like.

    Returns:
        The artifact with its ledger.

    Raises:
        EdgesmithError: Something the caller can mend; the message says what and how.
    """
    settings = settings or Settings()
    registry = settings.registry or load_registry()
    chosen_recipe, choice = load_recipe(recipe), choose_data(data)
    plan = make_plan(registry, chosen_recipe, target)
    _require_source(source, registry)
    plan.require_needs(has_data=choice.has_calibration)
    if settings.isolation is not None:
        plan = replace(plan, target=apart(registry, plan.target_record, plan.target, settings.isolation))
    out = Path(out)
    require_replaceable(out, marker=MANIFEST_FILE)
    require_writable(out.parent)
    store = Store(settings.store)
    require_writable(store.directory)
    threads = settings.threads or usable_cores()
    workshop = Workshop(registry, store, settings.progress, threads, settings.isolation)
    with ExitStack() as closing:
        clock = _device_clock(plan, settings, closing)
        model = choice.equip(load_source(source, workshop, example_inputs=example_inputs))
        _require_portable(model, plan, registry)
        model = fix_sizes(model, plan, choice, batch_size=settings.batch_size, store=store)
        opened = choice.open(model)
        for step in plan.steps:
            labelled = opened.calibration is not None and opened.calibration.has_labels
            check_needs(step.needing, has_data=opened.calibration is not None, has_labels=labelled)
        yardstick = _yardstick(model, opened, plan, workshop, settings, closing)
        yardstick = replace(yardstick, clock=clock or yardstick.runner)
        outcome = run_plan(plan, model, opened.calibration, yardstick, workshop)
    command = settings.command or _command(source, plan, recipe, data, out, settings)
    with settings.progress.stage("writing the artifact"):
        return write_artifact(out, plan, model, outcome, yardstick, command, workshop)


def load_source(source: object, workshop: Workshop, *, example_inputs: object = None) -> Model:
    """Return the Model in `source`, from the store if this content was read before.

    An artifact is a source like any other, with the task and the preprocessing that travel in it.

    Raises:
        ModelError: No frontend reads such a source, or it is damaged.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, str | Path) and (Path(source) / MANIFEST_FILE).is_file():
        task, assets = read_use(Path(source))
        return replace(load_source(read_entry(Path(source)), workshop), task=task, assets=assets)
    record, frontend = _frontend_for(source, workshop.registry)

    def ask(hook: str, work: Callable[[], object], kind: type[AnswerT]) -> AnswerT:
        what = f"Frontend {record.name} {record.version} from {workshop.registry.distribution_of(record)}: its {hook}"
        answer = call_plugin(work, what, ModelError, module=type(frontend).__module__, passing=(OSError,))
        if not isinstance(answer, kind):
            raise plugin_fault(ModelError, what, f"returned an object of type {type(answer).__name__}")
        return answer

    key = make_key(
        {
            "kind": "source",
            "frontend": f"{record.name} {record.version}",
            "distribution": workshop.registry.distribution_of(record),
            "fingerprint": ask("fingerprint", lambda: frontend.fingerprint(source, example_inputs=example_inputs), str),
            "versions": library_versions(),
        }
    )
    found = workshop.store.model(key)
    if found is None:
        with workshop.progress.stage(f"reading {source if isinstance(source, str | Path) else type(source).__name__}"):
            read = ask("load", lambda: frontend.load(source, example_inputs=example_inputs), Model)
            found = workshop.store.keep_model(key, read, {})
    # The store knows content; where it lies now is the caller's matter, and where it lay then nobody else's.
    named = str(source) if isinstance(source, str | Path) else found.model.provenance.source
    return replace(found.model, provenance=replace(found.model.provenance, source=named))


def _require_source(source: object, registry: "Registry") -> None:
    """Refuse a source that cannot be read, before anything is said of data that its recipe needs.

    Raises:
        ModelError: There is no such file or directory, or no frontend reads it.
    """
    if isinstance(source, Model) or (isinstance(source, str | Path) and (Path(source) / MANIFEST_FILE).is_file()):
        return
    if isinstance(source, str | Path) and Path(source).suffix == ".onnx":
        require_model_file(Path(source))
    _frontend_for(source, registry)


def _require_portable(model: Model, plan: Plan, registry: "Registry") -> None:
    """Refuse operators that ONNX Runtime's optimizer wrote for the processor it ran on, where another device is meant.

    Raises:
        ModelError: There are some, and the target is not for the machine that compiles.
    """
    found = sorted({node.domain for node in model.graph.all_nodes()} & PROCESSOR_DOMAINS)
    if not found or registry.load(registry.runner(plan.target_record.runner)).measures_cost:
        return
    raise ModelError(
        f"The source has operators of {', '.join(found)}: ONNX Runtime's optimizer wrote it for one processor.",
        expected=f"a graph that can run on the device of {plan.target_record.name}, in operators of ONNX",
        why="These operators hold weights in the order of that processor's memory, and no other runtime knows them.",
        fix="Export the model again, or save it with the optimizer at level EXTENDED or below.",
    )


def _frontend_for(source: object, registry: "Registry") -> "tuple[FrontendRecord, Frontend]":
    broken = []
    for record in registry.frontends():
        try:
            frontend: Frontend = registry.load(record)()
            accepted = frontend.accepts(source)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  a plugin's frontend may not stop the others from being asked
            log_traceback(f"frontend {record.name} of {registry.distribution_of(record)}", error)
            broken.append(f"{record.name} ({first_words(error)})")
            continue
        if accepted:
            return record, frontend
    named = f"{str(source)!r}" if isinstance(source, str | Path) else f"an object of type {type(source).__name__}"
    raise ModelError(
        f"No installed frontend reads {named}.{' Broken: ' + '; '.join(broken) if broken else ''}",
        expected="; ".join(f"{record.name}: {record.summary}" for record in registry.frontends()),
        why="A source must become a graph before anything can be done to it.",
        fix="Check the path: a directory needs a config.json, a file the ending .onnx.",
    )


def _device_clock(plan: Plan, settings: Settings, closing: ExitStack) -> "Clock | None":
    """Connect to the device to time on, if there is one, until `closing` ends. Before long work: it may be away."""
    if not settings.on:
        return None
    from edgesmith.device.clock import open_clock

    address, device, profile = parse_address(settings.on), settings.device, plan.target.profile
    own = own_runtime(profile)
    if (device.runtime or own or ONNX_RUNTIME) == ONNX_RUNTIME != own and plan.recipe.keep == "if-pays":
        raise RecipeError(
            f"With `keep: if-pays`, times decide, and those of ONNX Runtime say little of {plan.target_record.name}.",
            expected="the target's own runtime on the device, or `keep: always`",
            why="A step that pays in one runtime may cost in another, and would be kept or undone for the wrong one.",
            fix="Write `keep: always` in the recipe, or leave --set runtime=onnxruntime out if it is there.",
        )
    device = device.model_copy(update={"threads": device.threads or settings.threads or 0})
    as_written = not plan.target.for_onnx_runtime
    return closing.enter_context(open_clock(address, profile, device, settings.progress, as_written=as_written))


def _yardstick(
    model: Model, data: RunData, plan: Plan, workshop: Workshop, settings: Settings, processes: ExitStack
) -> Yardstick:
    registry = workshop.registry
    evaluation = data.evaluation or RandomInputs(model, batch_size=settings.batch_size)
    record = choose_metric(model, data, plan.recipe.metric, registry)
    if plan.recipe.budget.max_metric_drop is not None and not record.needs_labels:
        raise RecipeError(
            f"The budget limits the drop of {record.name!r}, which compares with the source and has no drop.",
            expected="a metric against labels, such as accuracy",
            why="A limit that cannot be checked would look as if it held.",
            fix="Give labelled evaluation data, or remove `max_metric_drop`.",
        )
    runner_record = registry.runner(plan.target_record.runner)
    makers = tuple(f"{one.name} {one.version} from {registry.distribution_of(one)}" for one in (runner_record, record))
    runner = ContainedRunner(
        f"Runner {makers[0]}", registry.load(runner_record), threads=workshop.threads, tier=plan.target_record.tier
    )
    return Yardstick(
        runner=runner,
        clock=runner,
        makers=makers,
        metric_record=record,
        make_metric=_metric_maker(record, f"Metric {makers[1]}", workshop, processes),
        evaluation=evaluation,
        inputs=first_batch(evaluation, fixed_batch_size(model) or settings.batch_size).inputs,
        passed_over=passed_over(model.graph),
        labels=label_values(find_structure(model.ir)),
        latency_plan=settings.latency_plan,
    )


def _metric_maker(
    record: "MetricRecord", author: str, workshop: Workshop, processes: ExitStack
) -> "Callable[[], Metric]":
    """Return what makes metrics of the run: with isolation, a stranger's in a process that ends with `processes`."""
    registry, isolation = workshop.registry, workshop.isolation
    if isolation is None or registry.plugin_of(record).distribution == OWN_DISTRIBUTION:
        return MetricMaker(author, registry.load(record))
    return processes.enter_context(IsolatedMetrics(registry, record, author, isolation))


def choose_metric(model: Model, data: RunData, name: str | None, registry: "Registry") -> "MetricRecord":
    """Return the metric asked for; else the task's if there are labels; else the distance from the source.

    Raises:
        RecipeError: The metric needs labels, and there are none.
    """
    labelled = data.evaluation is not None and data.evaluation.has_labels
    by_task = model.task.metric or ("perplexity" if model.task.kind == "causal-lm" else "accuracy")
    record = registry.metric(name or (by_task if labelled else "sqnr"))
    if record.needs_labels and not labelled:
        raise RecipeError(
            f"The metric {record.name!r} needs labels, and the evaluation data has none.",
            expected="evaluation data with labels",
            why="A score against labels cannot be computed without them.",
            fix="Name the label column or folder in the data description, or set `metric: sqnr` in the recipe.",
        )
    return record


def _command(source: object, plan: Plan, recipe: object, data: object, out: Path, settings: Settings) -> str:
    """Return the command line that does the same again, as far as it can be put into words."""
    words = ["edgesmith", "compile", str(source) if isinstance(source, str | Path) else "SOURCE"]
    words += ["--target", plan.target_record.name]
    words += ["--recipe", str(recipe) if isinstance(recipe, str | Path) else "recipe.yaml"]
    if data is not None:
        words += ["--data", str(data) if isinstance(data, str | Path) else "DATA"]
    if settings.on:
        words += ["--on", settings.on]
        for name, value in settings.device.model_dump(exclude_defaults=True).items():
            words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--out", str(out)])
