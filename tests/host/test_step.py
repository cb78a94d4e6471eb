"""What the host proves about a step that does not crash: guarantee, data, seeds, provenance, events."""

import errno
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from edgesmith.errors import DataError, StepError
from edgesmith.execution.reference import ReferenceSession
from edgesmith.execution.sample import sample_inputs
from edgesmith.host.context import Context
from edgesmith.host.records import TargetRecord
from edgesmith.host.step import run_lowering
from edgesmith.testing import fake_dialect, isolated_registry, run_method, tiny_mlp

STEP_PLUGIN = Path(__file__).with_name("step_plugin.py")


@pytest.fixture
def registry():
    return isolated_registry(STEP_PLUGIN)


def seen(registry) -> list[str]:
    return registry.plugins[0].module.SEEN


class Samples:
    """Calibration data in memory, as the host sees it: something with batches."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.sizes: list[int] = []

    def batches(self, batch_size):
        self.sizes.append(batch_size)
        for start in range(0, len(self.array), batch_size):
            yield SimpleNamespace(inputs={"x": self.array[start : start + batch_size]}, labels=None)


def test_the_result_does_what_the_method_did_and_carries_its_provenance(registry):
    model = tiny_mlp()
    result = run_method(registry, "scale", model, {"factor": 2.0})
    inputs = sample_inputs(model.ir)
    before, after = (ReferenceSession(one.ir).run(inputs)["y"] for one in (model, result.model))
    np.testing.assert_allclose(after, 2 * before, rtol=1e-6)
    assert result.relative_error == pytest.approx(1.0)
    assert result.model.provenance.steps == ("scale 1.0",)
    assert model.provenance.steps == ()
    assert result.seconds > 0
    again = run_method(registry, "scale", result.model, {"factor": 0.5})
    assert again.model.provenance.steps == ("scale 1.0", "scale 1.0")
    assert again.model.digest() == model.digest()


def test_an_exact_method_may_be_off_by_rounding_and_no_more(registry):
    assert run_method(registry, "scale-exactly", tiny_mlp(), {"factor": 1.00005}).relative_error < 1e-4
    with pytest.raises(StepError, match="'exact'") as caught:
        run_method(registry, "scale-exactly", tiny_mlp(), {"factor": 1.001})
    assert "off by 0.001" in caught.value.what


def test_a_tolerance_is_held_to_its_record(registry):
    assert run_method(registry, "scale-a-bit", tiny_mlp(), {"factor": 1.09}).relative_error == pytest.approx(
        0.09, rel=0.01
    )
    with pytest.raises(StepError, match=r"promised outputs within 0\.1"):
        run_method(registry, "scale-a-bit", tiny_mlp(), {"factor": 1.11})


def test_another_output_shape_is_a_remark_where_lossy_and_a_failure_where_not(registry):
    result = run_method(registry, "scale", tiny_mlp(), {"reshape": True})
    assert result.relative_error is None
    assert "another shape" in result.notes.remarks[0]
    with pytest.raises(StepError, match="has another shape"):
        run_method(registry, "scale-exactly", tiny_mlp(), {"reshape": True})


def test_a_failure_names_version_distribution_and_options(registry):
    with pytest.raises(StepError) as caught:
        run_method(registry, "scale-exactly", tiny_mlp(), {"factor": 3.0})
    author = (
        f"method scale-exactly 1.0 from file:step_plugin {registry.plugins[0].version} "
        "(factor=3.0, verdict='ok', interrupt='never', reshape=False)"
    )
    assert caught.value.what.startswith(author)


@pytest.mark.parametrize("status", ["skip", "refuse"])
def test_a_method_that_does_not_apply_is_not_applied_and_has_a_reason(registry, status):
    model = tiny_mlp()
    result = run_method(registry, "scale", model, {"verdict": status, "factor": 2.0})
    assert (result.verdict.status, result.model, result.seconds) == (status, model, 0.0)
    assert result.verdict.reason


@pytest.mark.parametrize("moment", ["check", "apply"])
def test_an_interrupt_passes_through(registry, moment):
    with pytest.raises(KeyboardInterrupt):
        run_method(registry, "scale", tiny_mlp(), {"interrupt": moment})


def test_observers_hear_of_start_end_and_failure(registry):
    seen(registry).clear()
    run_method(registry, "scale", tiny_mlp())
    with pytest.raises(StepError):
        run_method(registry, "scale-exactly", tiny_mlp(), {"factor": 3.0})
    before, after, before_failure, failure = seen(registry)
    assert (before, after) == ("before 0 scale None", "after 0 scale ok True")
    assert before_failure == "before 0 scale-exactly None"
    assert failure.startswith("error 0 3.0 method scale-exactly 1.0")


def test_observers_can_tell_a_skip_and_a_refusal_from_a_step_that_was_applied(registry):
    seen(registry).clear()
    run_method(registry, "scale", tiny_mlp(), {"verdict": "skip"})
    run_method(registry, "scale", tiny_mlp(), {"verdict": "refuse"})
    _, skipped, _, refused = seen(registry)
    assert skipped == "after 0 scale skip False"
    assert refused.startswith("error 0 1.0 method scale 1.0 from file:step_plugin")
    assert refused.endswith("refuses this model: as asked")


def test_one_seed_gives_one_graph(registry):
    digests = [run_method(registry, "add-noise", tiny_mlp(), seed=seed).model.digest() for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


def test_calibration_data_is_what_the_proof_runs_on(registry):
    data = Samples(np.zeros((9, 8), np.float32))
    model = tiny_mlp()
    error = run_method(registry, "scale", model, {"factor": 2.0}, calibration=data).relative_error
    assert error == pytest.approx(1.0)
    assert data.sizes == [4]


def test_a_fixed_batch_is_respected(registry):
    model = tiny_mlp()
    graph = model.ir.clone()
    for value in (graph.graph.inputs[0], graph.graph.outputs[0], *(node.outputs[0] for node in graph.graph)):
        value.shape = ir.Shape([3, *value.shape[1:]])
    data = Samples(np.ones((9, 8), np.float32))
    run_method(registry, "scale", model.with_ir(graph), calibration=data)
    assert data.sizes == [3]


def test_empty_or_unfitting_calibration_data_is_the_data_not_the_plugin(registry):
    with pytest.raises(DataError, match="empty"):
        run_method(registry, "scale", tiny_mlp(), calibration=Samples(np.zeros((0, 8), np.float32)))
    with pytest.raises(DataError, match="shape"):
        run_method(registry, "scale", tiny_mlp(), calibration=Samples(np.zeros((4, 7), np.float32)))


def with_operator(operator: str) -> ir.Model:
    """Return the tiny MLP with one more operator behind its output."""
    graph = tiny_mlp().ir
    old = graph.graph.outputs[0]
    node = ir.node(operator, [old], name="last")
    node.outputs[0].type, node.outputs[0].shape = old.type, old.shape
    old.name, node.outputs[0].name = "y_inner", "y"
    graph.graph.append(node)
    graph.graph.outputs[0] = node.outputs[0]
    return graph


def test_infinities_that_were_there_before_are_not_blamed_on_the_step(registry):
    model = tiny_mlp().with_ir(with_operator("Log"))
    inputs = sample_inputs(model.ir)
    assert not np.isfinite(ReferenceSession(model.ir).run(inputs)["y"]).all()
    assert run_method(registry, "scale", model, {"factor": 2.0}).verdict.status == "ok"


def test_new_infinities_are_blamed_on_the_step_and_located(registry):
    model = tiny_mlp().with_ir(with_operator("Exp"))
    with pytest.raises(StepError, match=r"output 'y' is infinite in \d of 8 places, first at node 'last' \(Exp\)"):
        run_method(registry, "scale", model, {"factor": 1e6})


def test_an_annotation_that_was_wrong_before_is_not_blamed_on_the_step(registry):
    graph = tiny_mlp().ir
    next(iter(graph.graph)).outputs[0].shape = ir.Shape(["batch", 17])
    result = run_method(registry, "scale", tiny_mlp().with_ir(graph), {"factor": 2.0})
    assert result.verdict.status == "ok"


def test_a_model_that_random_inputs_do_not_fit_is_not_compared(registry):
    graph = tiny_mlp().ir
    x = graph.graph.inputs[0]
    # Two symbolic sizes that must be equal at run time.
    other = ir.Value(name="z", type=x.type, shape=ir.Shape(["other", 8]))
    total = ir.node("Add", [x, other], name="sum")
    total.outputs[0].type, total.outputs[0].shape = x.type, ir.Shape(["batch", 8])
    other.shape = ir.Shape(["other", "width"])
    graph.graph.inputs.append(other)
    first = next(iter(graph.graph))
    first.replace_input_with(0, total.outputs[0])
    graph.graph.insert_before(first, total)
    result = run_method(registry, "scale-exactly", tiny_mlp().with_ir(graph), {"factor": 2.0})
    assert result.relative_error is None
    assert "cannot run on random inputs" in result.notes.remarks[0]


class Lowering:
    """A target as far as `run_lowering` uses one."""

    def __init__(self, lower):
        self.lower = lambda model, context: lower(model)


BOARD = TargetRecord(name="board", version="2.0", summary="A board.", entry="absent:Board")


def lower(model, function, tmp_path):
    return run_lowering(BOARD, Lowering(function), model, Context(None, fake_dialect(), tmp_path))


def test_lowering_is_held_to_the_same_conditions(tmp_path):
    model = tiny_mlp()
    result = lower(model, lambda given: given.clone(), tmp_path)
    assert result.model.digest() == model.digest()
    assert result.relative_error == 0.0
    assert result.model.provenance.steps == ()
    with pytest.raises(StepError, match=r"^target board 2\.0: returned the graph it was given"):
        lower(model, lambda given: given, tmp_path)
    with pytest.raises(StepError, match=r"^target board 2\.0: returned an object of type NoneType"):
        lower(model, lambda given: None, tmp_path)


def test_the_model_of_the_caller_survives_an_edit_in_place(tmp_path):
    model = replace(tiny_mlp())
    digest = model.digest()

    def edit(given):
        del given.ir.graph.initializers["up"]
        raise ValueError("half way")

    with pytest.raises(StepError, match="ValueError: half way"):
        lower(model, edit, tmp_path)
    assert model.digest() == digest


def test_a_full_disk_is_nobodys_crash(tmp_path):
    def fill(given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StepError, match=r"board 2\.0: OSError: .* No space left on device") as caught:
        lower(tiny_mlp(), fill, tmp_path)
    assert "TMPDIR" in caught.value.fix and "author" not in caught.value.fix


def test_an_output_that_is_no_tensor_is_remarked_and_not_compared(registry):
    graph = tiny_mlp().ir
    y = graph.graph.outputs[0]
    node = ir.node("SequenceConstruct", [y], name="pack")
    node.outputs[0].name = "packed"
    node.outputs[0].type = ir.SequenceType(y.type)
    graph.graph.append(node)
    graph.graph.outputs.append(node.outputs[0])
    result = run_method(registry, "scale", tiny_mlp().with_ir(graph), {"factor": 2.0})
    assert result.relative_error == pytest.approx(1.0)
    assert result.notes.remarks == ["Output 'packed' is no tensor, so it is not compared."]
