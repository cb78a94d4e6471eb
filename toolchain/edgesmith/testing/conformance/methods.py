"""Checks of a method. Each is one function that says what it asks for in its first line."""

import hashlib
import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from edgesmith.errors import Condition, RecipeError
from edgesmith.graph.edit import GraphEditor
from edgesmith.host.options import option_schemas
from edgesmith.host.records import Guarantee
from edgesmith.host.step import CHECK_CRASHED
from edgesmith.model import Model
from edgesmith.serialization import to_bytes
from edgesmith.testing.conformance.bench import Attempt, MethodBench
from edgesmith.testing.conformance.options import edge_values, takes_anything, values_beyond, wrong_value
from edgesmith.testing.conformance.records import run_python
from edgesmith.testing.conformance.result import CheckResult, failed, not_applicable, ok
from edgesmith.testing.fakes import bare_dialect, fake_dialect
from edgesmith.testing.registry import isolated_registry
from edgesmith.testing.runs import run_recipe

_STRANGE_NODE = "the_strange_node"
_STRANGE_OPERATOR = "StrangeOperator"
_NOWHERE = "The method applied to none of the models."
_CHILD = "import sys; from edgesmith.testing.conformance.methods import repeat; print(repeat(sys.argv[1]))"


def check_is_total(bench: MethodBench) -> CheckResult:
    """`check` answers for every graph and target, with and without data, and says why where it does not apply."""
    for dialect in (fake_dialect(), bare_dialect()):
        for where, verdict in bench.verdicts(dialect):
            if verdict.reason.startswith(CHECK_CRASHED):
                return failed(f"{where}: {verdict.reason}", "Let `check` return a Verdict for every valid graph.")
            if verdict.status != "ok" and verdict.reason.endswith("gave no reason"):
                return failed(
                    f"{where}: {verdict.status} without a reason",
                    "Write Verdict.skip(reason) or Verdict.refuse(reason), with what would work instead.",
                )
    return ok()


def it_applies_or_says_why(bench: MethodBench) -> CheckResult:
    """Every graph for which `check` says ok is rewritten without a crash, and there is at least one."""
    for attempt in bench.attempts:
        if attempt.condition in (Condition.NO_CRASH, Condition.NEW_MODEL):
            return failed(attempt.problem, "Let `check` refuse what `apply` cannot do, with a reason.")
    if not bench.applied:
        reasons = {one.result.verdict.reason for one in bench.attempts if one.result is not None}
        return failed(
            f"it applied to no model ({'; '.join(sorted(reasons))[:300] or 'all failed'})",
            "Nothing was tested. Give a model that it is for: conformance(..., models={...}), or --model FILE.",
        )
    return ok(f"applied to {len(bench.applied)} of {len(bench.attempts)} models")


def inputs_and_outputs_are_kept(bench: MethodBench) -> CheckResult:
    """Names, types and ranks of the graph's inputs and outputs stay."""
    return _holds(bench, Condition.SAME_INTERFACE, "Rename inner values only, and let the output keep its type.")


def the_input_model_is_untouched(bench: MethodBench) -> CheckResult:
    """The model that was given is the same afterwards, weights included."""
    return _holds(bench, Condition.INPUT_UNTOUCHED, "Start with model.clone(), and give changed weights new arrays.")


def the_result_runs(bench: MethodBench) -> CheckResult:
    """The new graph is valid ONNX, loads in ONNX Runtime, and its outputs are finite."""
    for condition in (Condition.VALID, Condition.RUNS, Condition.FINITE):
        result = _holds(bench, condition, "Run the new graph in a test of your own, and look at the node named.")
        if result.status == "failed":
            return result
    return _somewhere(bench)


def the_guarantee_holds(bench: MethodBench) -> CheckResult:
    """Outputs stay as close as the record declares."""
    if bench.record.guarantee is Guarantee.LOSSY:
        errors = [one.result.relative_error for one in bench.applied if one.result is not None]
        largest = max((error for error in errors if error is not None), default=0.0)
        return not_applicable(f"A lossy method promises nothing. Largest relative error here: {largest:.2g}.")
    return _holds(bench, Condition.GUARANTEE, "Declare a weaker guarantee, or find the node that differs.")


def the_same_seed_gives_the_same_bytes(bench: MethodBench) -> CheckResult:
    """A second run with the same seed makes the same graph, byte for byte."""
    if not bench.record.deterministic:
        return not_applicable("The record says that the method is not deterministic.")
    for attempt in bench.representatives:
        again = bench.attempt(attempt.model)
        if _digest(again) != _digest(attempt):
            return failed(
                f"{attempt.where}: another graph than before",
                "Draw random numbers from numpy.random.default_rng(context.seed) only, or declare deterministic=False.",
            )
    return _somewhere(bench)


def another_process_gives_the_same_bytes(bench: MethodBench) -> CheckResult:
    """A fresh process, in which sets have another order, makes the same graph, byte for byte."""
    if not bench.record.deterministic:
        return not_applicable("The record says that the method is not deterministic.")
    if not any(bench.origin.values()):
        return not_applicable("The plugin is no module on disk.")
    if not bench.thorough:
        return not_applicable("It takes a process of its own; only thorough runs check it.")
    done = run_python(_CHILD, bench.bytes_request(), hash_seed="12345")
    if done.returncode:
        return failed(
            f"the other process failed: {(done.stderr.splitlines() or ['no message'])[-1]}",
            "Let the method depend on nothing but its context.",
        )
    theirs = json.loads(done.stdout.splitlines()[-1])
    if not theirs:
        return not_applicable("The method applied to none of the tiny models, and the process makes no others.")
    for attempt in bench.representatives:
        if attempt.model in theirs and theirs[attempt.model] != _digest(attempt):
            return failed(
                f"{attempt.where}: another graph in another process",
                "Do not iterate over sets of texts or values, nor sort by id(): their order changes with the process.",
            )
    return ok()


def it_answers_for_its_own_result(bench: MethodBench) -> CheckResult:
    """Applied to what it made, it applies again, skips or refuses; it does not fail."""
    for attempt in bench.representatives:
        if attempt.applied is not None:
            again = bench.attempt_on(attempt.model, attempt.applied, bench.data(attempt.model))
            if again.problem:
                return failed(
                    f"the second time on {again.problem}",
                    "Other methods may have changed a graph before. Let `check` look at what it really holds.",
                )
    return _somewhere(bench)


def options_work_at_their_edges(bench: MethodBench) -> CheckResult:
    """Limits and choices of every option work, or are refused with a reason."""
    schemas = option_schemas(bench.registry.options(bench.record))
    models = bench.representatives if bench.thorough else bench.applied[:1]
    tried = 0
    for name, schema in schemas.items():
        for value in edge_values(schema):
            if name in bench.options or value == schema.get("default"):
                continue
            for model in models:
                attempt = bench.attempt(model.model, {name: value})
                tried += 1
                if attempt.problem:
                    return failed(attempt.problem, "Narrow the option's range, or refuse the value with a reason.")
    return ok(f"{tried} values tried") if tried else not_applicable("There is no edge to try.")


def wrong_options_are_refused(bench: MethodBench) -> CheckResult:
    """An unknown option, a wrong type and a value beyond the limits are refused by name."""
    schemas = option_schemas(bench.registry.options(bench.record))
    wrong: list[tuple[str, object]] = [("an-unknown-option", 1)]
    for name, schema in schemas.items():
        wrong += [(name, value) for value in values_beyond(schema)]
        wrong += [] if takes_anything(schema) else [(name, wrong_value(schema))]
    for name, value in wrong:
        try:
            bench.registry.validate_options(bench.record, {**bench.options, name: value})
        except RecipeError as error:
            if name not in error.what:
                return failed(
                    f"{name}={value!r} is refused without its name: {error.what}",
                    "Raise ValueError in a validator of that field, and not in one of the whole model.",
                )
            continue
        return failed(f"{name}={value!r} is taken", "Give the field a type and its range, and forbid extra options.")
    return ok(f"{len(wrong)} wrong values tried")


def a_second_run_resumes(bench: MethodBench) -> CheckResult:
    """The same recipe run again takes the step from the store and gives the same file."""
    if not bench.record.deterministic:
        return not_applicable("The record says that the method is not deterministic, so nothing of it is stored.")
    if not bench.applied:
        return not_applicable(_NOWHERE)
    name = bench.applied[0].model
    recipe = {"steps": [{"method": bench.record.name, "options": bench.options}]}
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        rows, files = [], []
        for _ in range(2):
            artifact = run_recipe(bench.registry, bench.models[name], recipe, out=Path(folder))
            rows.append(artifact.ledger.rows[1])
            files.append(artifact.entry.read_bytes())
    if rows[0].cached or not rows[1].cached:
        return failed(
            "the second run computed the step again",
            "Let options be plain data: their JSON form is part of the key, so it must be the same on every run.",
        )
    return ok() if files[0] == files[1] else failed("the second run wrote another file", "Report it to Edgesmith.")


def errors_name_the_node(bench: MethodBench) -> CheckResult:
    """A graph with an operator that nobody knows is rewritten, or refused by the name of node or operator."""
    for attempt in bench.representatives:
        strange = _with_strange_node(bench.models[attempt.model])
        found = bench.attempt_on(attempt.model, strange, bench.data(attempt.model))
        verdict = found.result.verdict if found.result is not None else None
        words = found.error.what if found.error is not None else f"{verdict.reason} {verdict.nodes}" if verdict else ""
        silent = not any(name in words for name in (_STRANGE_NODE, _STRANGE_OPERATOR))
        if silent and (found.error is not None or (verdict is not None and verdict.status == "refuse")):
            return failed(
                f"{attempt.where} with a node {_STRANGE_NODE!r} ({_STRANGE_OPERATOR}) in it: {words}",
                "Name the node: in Verdict.nodes, in the message, or as the local variable `node` where it fails.",
            )
    return _somewhere(bench)


METHOD_CHECKS = (
    check_is_total,
    it_applies_or_says_why,
    inputs_and_outputs_are_kept,
    the_input_model_is_untouched,
    the_result_runs,
    the_guarantee_holds,
    the_same_seed_gives_the_same_bytes,
    another_process_gives_the_same_bytes,
    it_answers_for_its_own_result,
    options_work_at_their_edges,
    wrong_options_are_refused,
    a_second_run_resumes,
    errors_name_the_node,
)


def repeat(request: str) -> str:
    """Return the digests of the graphs that `MethodBench.bytes_request` asks for, by model, as JSON."""
    asked = json.loads(request)
    source = asked["file"] or importlib.import_module(asked["module"])
    registry = isolated_registry(source)
    bench = MethodBench(registry, registry.method(asked["method"]), options=asked["options"])
    return json.dumps({name: _digest(bench.attempt(name)) for name in asked["models"]})


def _holds(bench: MethodBench, condition: Condition, fix: str) -> CheckResult:
    broken = next((attempt for attempt in bench.attempts if attempt.condition is condition), None)
    return failed(broken.problem, fix) if broken is not None else _somewhere(bench)


def _somewhere(bench: MethodBench) -> CheckResult:
    return ok() if bench.applied else not_applicable(_NOWHERE)


def _digest(attempt: Attempt) -> str:
    return hashlib.sha256(to_bytes(attempt.applied.ir)).hexdigest() if attempt.applied is not None else ""


def _with_strange_node(model: Model) -> Model:
    """Return the model with a node of an unknown operator in its middle."""
    strange = model.clone()
    nodes: Sequence[ir.Node] = [node for node in strange.graph if node.outputs[0].dtype == ir.DataType.FLOAT]
    strange.graph.opset_imports["strange"] = 1
    middle = nodes[len(nodes) // 2] if nodes else strange.graph[0]
    GraphEditor(strange.graph).insert_on_uses(
        middle.outputs[0], _STRANGE_OPERATOR, domain="strange", name=_STRANGE_NODE
    )
    return strange
