"""What every rewritten graph must fulfil. The host checks it, so that no method has to, and none can forget.

Checked in this order, cheapest first: a new Model; the same inputs and outputs by name, dtype and rank; values that are
there when they are read; a valid ONNX graph; it loads in ONNX Runtime; its outputs on sample data are finite where
those before were; the guarantee holds.
A graph that is too large to be run beside what else is in memory is loaded and not run, and the report says so.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from edgesmith.errors import Condition, DataError, ModelError, StepError
from edgesmith.host.brief import brief
from edgesmith.host.records import Guarantee
from edgesmith.host.wiring import find_loose_end

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from edgesmith.model import Model
    from edgesmith_calibration.sources import DataSource

    Arrays = Mapping[str, np.ndarray]

EXACT_TOLERANCE = 1e-4
"""Relative error that reassociated floating-point arithmetic may cause (records.Guarantee)."""

_SAMPLES = 4
_LARGE_TENSOR_BYTES = 4096
_TAPS_PER_RUN = 32


@dataclass(frozen=True, slots=True)
class Promise:
    """Who rewrote a graph and what was promised about its outputs."""

    author: str
    """Names method, version, distribution and options in error messages."""
    guarantee: Guarantee = Guarantee.LOSSY
    tolerance: float = 0.0
    drops_caches: bool = False
    """Whether slots of a key/value cache may go, as `MethodRecord.drops_caches` declares."""

    @property
    def largest_error(self) -> float:
        """Largest allowed relative error; infinite for a lossy method."""
        match self.guarantee:
            case Guarantee.EXACT:
                return EXACT_TOLERANCE
            case Guarantee.TOLERANCE:
                return self.tolerance
            case Guarantee.LOSSY:
                return math.inf


@dataclass(frozen=True, slots=True)
class Proof:
    """What the checks found."""

    relative_error: float | None
    """Largest difference of one output, divided by that output's largest magnitude before; None if not comparable."""
    remarks: tuple[str, ...] = ()


def sample_batch(model: "Model", calibration: "DataSource | None", *, seed: int) -> "Arrays":
    """Return a few samples to run `model` on: calibration data if there is any, else plausible random inputs."""
    from edgesmith.execution.sample import sample_inputs

    if calibration is None:
        return sample_inputs(model.ir, seed=seed)
    first = next(iter(calibration.batches(_batch_size(model.ir))), None)
    if first is None:
        raise DataError(
            "the calibration data is empty",
            expected="at least one sample",
            why="Every step is checked by running the graph on real data.",
            fix="Check the data file.",
        )
    return first.inputs


def check_result(
    before: "Model", after: object, promise: Promise, samples: "Arrays", *, threads: int = 1, random: bool = False
) -> Proof:
    """Return the proof that `after` is a sound rewrite of `before`.

    Args:
        before: The model that was rewritten.
        after: What came back, of any type.
        promise: Who made it and what was promised.
        samples: Inputs to run both on, by name.
        threads: Threads of ONNX Runtime.
        random: Whether `samples` are made up. Then a graph that cannot run on them is not compared.

    Raises:
        StepError: A condition does not hold; the message names the author and, where known, the node.
    """
    from edgesmith.execution.handover import obstacle_to_running

    rewritten = _require_new_model(before, after, promise)
    _require_same_interface(before.ir, rewritten.ir, promise)
    _require_wired(rewritten.ir, promise)
    _require_valid(before.ir, rewritten.ir, promise)
    obstacle = obstacle_to_running(before.ir) or obstacle_to_running(rewritten.ir)
    if obstacle:
        _run_after(rewritten.ir, None, promise, threads)
        return Proof(None, (f"The graph was loaded and not run, so outputs were not compared: {obstacle}.",))
    expected, remarks = _run_before(before.ir, samples, threads, random)
    actual = _run_after(rewritten.ir, samples if expected is not None else None, promise, threads)
    if expected is None or actual is None:
        return Proof(None, remarks)
    expected = {name: values for name, values in expected.items() if name in actual}
    _require_finite(rewritten.ir, expected, actual, promise, samples, threads)
    return _require_guarantee(expected, actual, promise, remarks)


def fail(
    promise: Promise,
    condition: Condition,
    problem: str,
    *,
    expected: str,
    why: str,
    cause: BaseException | None = None,
) -> StepError:
    """Return the error for a broken condition, attributed to the author of the promise."""
    error = StepError(
        f"{promise.author}: {problem}",
        expected=expected,
        why=why,
        fix="Report it to the author of the plugin, or remove the step. The model before the step is intact.",
    )
    error.__cause__ = cause
    return error.broke(condition)


def _batch_size(model: "ir.Model") -> int:
    """Return the batch that the graph is fixed to, or a few samples."""
    shape = model.graph.inputs[0].shape if model.graph.inputs else None
    first = shape[0] if shape is not None and shape.rank() else None
    return first if isinstance(first, int) and first > 0 else _SAMPLES


def _require_new_model(before: "Model", after: object, promise: Promise) -> "Model":
    from edgesmith.model import Model

    problem = _misfit(after) if isinstance(after, Model) else f"an object of type {type(after).__name__}"
    if problem is not None or not isinstance(after, Model):
        raise fail(
            promise,
            Condition.NEW_MODEL,
            f"returned {problem}",
            expected="a Model, made with model.clone() or model.with_ir(graph)",
            why="The next step and the target need a graph, and know by the task what it is for.",
        )
    if after is before or after.ir is before.ir:
        raise fail(
            promise,
            Condition.NEW_MODEL,
            "returned the graph it was given",
            expected="a new graph, made with model.clone()",
            why="A step that edits its input cannot be undone or resumed.",
        )
    return after


def _misfit(model: "Model") -> str | None:
    """Return "a Model whose ..." for a part that is missing or of another type. Python checks neither."""
    import onnx_ir as ir

    from edgesmith.model import Provenance
    from edgesmith.task import Task

    for part, kind in (("ir", ir.Model), ("task", Task), ("provenance", Provenance), ("assets", Mapping)):
        held = getattr(model, part, None)
        if not isinstance(held, kind):
            return f"a Model whose {part} is of type {type(held).__name__}, not {kind.__name__}"
    for name, content in model.assets.items():
        if not isinstance(name, str) or not isinstance(content, bytes):
            return f"a Model whose asset {brief(name)} is of type {type(content).__name__}, not bytes under a name"
    return None


def _require_same_interface(before: "ir.Model", after: "ir.Model", promise: Promise) -> None:
    inputs, outputs = _kept_interface(before, after, promise)
    pairs = (("input", inputs, after.graph.inputs), ("output", outputs, after.graph.outputs))
    for role, old, new in pairs:
        if [value.name for value in old] != [value.name for value in new]:
            names = [[value.name for value in values] for values in (old, new)]
            raise fail(
                promise,
                Condition.SAME_INTERFACE,
                f"changed the graph's {role}s from {names[0]} to {names[1]}",
                expected=f"the same {role} names in the same order",
                why="Whoever runs the model feeds and reads it by these names.",
            )
        for was, now in zip(old, new, strict=True):
            if was.dtype is not None and now.dtype is not None and was.dtype != now.dtype:
                raise _changed(promise, f"the dtype of {role} {was.name!r} from {was.dtype} to {now.dtype}")
            if was.shape is not None and now.shape is not None and was.shape.rank() != now.shape.rank():
                raise _changed(promise, f"the shape of {role} {was.name!r} from {was.shape} to {now.shape}")


def _kept_interface(
    before: "ir.Model", after: "ir.Model", promise: Promise
) -> tuple[list["ir.Value"], list["ir.Value"]]:
    """Return the inputs and outputs that must still be there: all but the caches that may go and are gone whole."""
    from edgesmith.graph.cache import find_caches

    inputs, outputs = list(before.graph.inputs), list(before.graph.outputs)
    if promise.drops_caches:
        there = {value.name for value in (*after.graph.inputs, *after.graph.outputs)}
        gone = [cache for cache in find_caches(before) if not {cache.input.name, cache.output.name} & there]
        inputs = [value for value in inputs if all(value is not cache.input for cache in gone)]
        outputs = [value for value in outputs if all(value is not cache.output for cache in gone)]
    return inputs, outputs


def _changed(promise: Promise, what: str) -> StepError:
    return fail(
        promise,
        Condition.SAME_INTERFACE,
        f"changed {what}",
        expected="the same dtype and number of dimensions",
        why="Whoever runs the model feeds and reads arrays of that form.",
    )


def _require_wired(after: "ir.Model", promise: Promise) -> None:
    problem = find_loose_end(after.graph)
    for function in after.functions.values():
        problem = problem or find_loose_end(function)
    if problem is not None:
        raise fail(
            promise,
            Condition.VALID,
            f"made a graph in which {problem}",
            expected="nodes that read inputs and initializers of their own graph, and outputs of nodes before them",
            why="No runtime can run it, and the host cannot even copy it.",
        )


def _require_valid(before: "ir.Model", after: "ir.Model", promise: Promise) -> None:
    problem = _invalidity(after)
    # Exporters write wrong shape annotations. What was wrong before is not this step's fault.
    if problem is not None and _invalidity(before) is None:
        raise fail(
            promise,
            Condition.VALID,
            f"made a graph that is not valid ONNX: {problem}",
            expected="a graph that the ONNX checker accepts",
            why="Runtimes and compilers refuse it or read it differently.",
        )


def _invalidity(model: "ir.Model") -> str | None:
    """Return what the ONNX checker says, or None for a valid graph. Large weights are not serialised."""
    import onnx
    import onnx_ir as ir

    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > _LARGE_TENSOR_BYTES:
            del light.graph.initializers[name]
            if not value.is_graph_input():
                light.graph.inputs.append(value)
    try:
        onnx.checker.check_model(ir.to_proto(light), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, TypeError) as error:
        return " ".join(str(error).split())[:500]
    return None


def _run_before(
    model: "ir.Model", samples: "Arrays", threads: int, random: bool
) -> tuple["Arrays | None", tuple[str, ...]]:
    import numpy as np

    from edgesmith.execution.reference import ReferenceSession

    try:
        outputs = ReferenceSession(model, threads=threads).run(samples)
        others = [name for name, values in outputs.items() if not isinstance(values, np.ndarray)]
        remarks = tuple(f"Output {name!r} is no tensor, so it is not compared." for name in others)
        return {name: values for name, values in outputs.items() if name not in others}, remarks
    except (DataError, ModelError) as error:
        if not random:
            raise
        remark = (
            f"Outputs were not compared: the model cannot run on random inputs ({error.what}). Give calibration data."
        )
        return None, (remark,)


def _run_after(model: "ir.Model", samples: "Arrays | None", promise: Promise, threads: int) -> "Arrays | None":
    from edgesmith.execution.reference import ReferenceSession

    try:
        session = ReferenceSession(model, threads=threads, prepack=samples is not None)
        if samples is None:
            return None
        return session.run({name: array for name, array in samples.items() if name in session.input_names})
    except (DataError, ModelError) as error:
        raise fail(
            promise,
            Condition.RUNS,
            f"made a graph that ONNX Runtime does not run: {error.what}",
            expected="a graph that loads and runs where the one before did",
            why="It is the numeric reference for every further step.",
            cause=error,
        ) from error


def _require_finite(
    model: "ir.Model", expected: "Arrays", actual: "Arrays", promise: Promise, samples: "Arrays", threads: int
) -> None:
    import numpy as np

    for name, values in expected.items():
        before, after = _numbers(values), _numbers(actual[name])
        if before is None or after is None:
            continue
        # A graph may compute infinities on purpose (masked logits). Only new ones are this step's fault.
        spoilt = ~np.isfinite(after)
        if before.shape == after.shape:
            spoilt &= np.isfinite(before)
        elif not np.isfinite(before).all():
            continue
        if spoilt.any():
            kind = "NaN" if np.isnan(after[spoilt]).any() else "infinite"
            origin = _first_spoilt_node(model, samples, kind, threads)
            raise fail(
                promise,
                Condition.FINITE,
                f"output {name!r} is {kind} in {int(spoilt.sum())} of {spoilt.size} places{origin}",
                expected="finite outputs on sample data where they were finite before",
                why="Nothing downstream can recover from it.",
            )


def _first_spoilt_node(model: "ir.Model", samples: "Arrays", kind: str, threads: int) -> str:
    """Return ", first at node ..." for the first node whose output holds NaN or infinity, or nothing."""
    import numpy as np

    from edgesmith.execution.reference import ReferenceSession

    test = np.isnan if kind == "NaN" else np.isinf
    producers = {value.name: node for node in model.graph for value in node.outputs if value.name}
    for names in _chunks(list(producers), _TAPS_PER_RUN):
        try:
            session = ReferenceSession(model, taps=names, optimization="disabled", threads=threads)
            values = session.run({name: samples[name] for name in session.input_names})
        except ModelError:
            # Values of types that cannot be outputs. The search is a courtesy; the failure itself is reported.
            return ""
        for name in names:
            numbers = _numbers(values[name])
            if numbers is not None and test(numbers).any():
                node = producers[name]
                return f", first at node {node.name!r} ({node.op_type})"
    return ""


def _require_guarantee(expected: "Arrays", actual: "Arrays", promise: Promise, remarks: tuple[str, ...]) -> Proof:
    worst, worst_name = 0.0, ""
    for name, values in expected.items():
        error = _relative_error(values, actual[name])
        if error is None or error > worst:
            worst, worst_name = math.inf if error is None else error, name
    if worst > promise.largest_error:
        raise fail(
            promise,
            Condition.GUARANTEE,
            f"promised outputs within {promise.largest_error:g} (relative), and output {worst_name!r} "
            + (f"is off by {worst:.3g}" if math.isfinite(worst) else "has another shape"),
            expected=f"the guarantee {promise.guarantee.value!r} that the record declares",
            why="A recipe relies on it: a step that promises nothing changed is not measured for accuracy.",
        )
    if math.isinf(worst):
        return Proof(None, (*remarks, f"Output {worst_name!r} has another shape than before, so it is not compared."))
    return Proof(worst, remarks)


def _relative_error(before: "np.ndarray", after: "np.ndarray") -> float | None:
    """Return the largest difference relative to the largest magnitude before, or None for unlike shapes."""
    import numpy as np

    if before.shape != after.shape:
        return None
    expected, actual = _numbers(before), _numbers(after)
    if expected is None or actual is None:
        return 0.0 if np.array_equal(before, after) else 1.0
    finite = np.isfinite(expected) & np.isfinite(actual)
    if not finite.any():
        return 0.0
    scale = float(np.abs(expected[finite]).max())
    difference = float(np.abs(actual[finite] - expected[finite]).max())
    if difference == 0.0:
        return 0.0
    return difference / scale if scale > 0.0 else difference


def _numbers(values: "np.ndarray") -> "np.ndarray | None":
    """Return `values` as float64, or None for texts."""
    import numpy as np

    return None if values.dtype.kind in "OSU" else values.astype(np.float64)


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
