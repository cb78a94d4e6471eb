"""The formulas of recovery, held against their definitions."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesmith.execution.training import divergence
from edgesmith_calibration.moments import MomentsObserver
from edgesmith_recovery.arithmetic.adapters import start, updated
from edgesmith_recovery.arithmetic.least_squares import masked_least_squares, scaled_and_shifted
from edgesmith_recovery.arithmetic.losses import label_error
from edgesmith_recovery.arithmetic.schedule import rate_factor

ADAPTERS = ("mask-lora", "scale-lora", "lora-prune", "lora")


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 10, 16, 100])
@pytest.mark.parametrize("inputs_are_columns", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_starts_as_the_identity(adapter: str, inputs_are_columns: bool, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = start(adapter, 6, 10, rank, inputs_are_columns=inputs_are_columns, generator=generator)
    weight = torch.randn(6, 10)
    found = updated(adapter, weight, left, right, 2.0)
    # Powers of two add up to 1 exactly in any order; the others add exact zeros.
    assert torch.equal(found, weight)
    assert (left.shape, right.shape) == ((6, rank), (rank, 10))
    if adapter == "scale-lora":
        # Near 1 / sqrt(rank) as in the paper, and equal to it for powers of four.
        ratios = torch.cat([left.flatten(), right.flatten()]) * rank**0.5
        assert ratios.min() >= 0.5 and ratios.max() <= 2
        assert rank not in (1, 4, 16) or (ratios == 1).all()
    # A gradient must reach one of the factors, or nothing would ever be learned.
    left.requires_grad_(), right.requires_grad_()
    updated(adapter, weight, left, right, 2.0).square().sum().backward()
    assert float(left.grad.abs().max() + right.grad.abs().max()) > 0


def test_scaling_keeps_zeros_and_adding_does_not() -> None:
    weight = torch.randn(6, 10)
    weight[weight.abs() < 0.7] = 0
    left, right = torch.randn(6, 3), torch.randn(3, 10)
    assert torch.equal(updated("scale-lora", weight, left, right, 2.0) == 0, weight == 0)
    assert not torch.equal(updated("mask-lora", weight, left, right, 2.0) == 0, weight == 0)


def test_divergence_is_that_of_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    p, q = torch.softmax(teacher / 2, -1), torch.softmax(student / 2, -1)
    expected = 4 * (p * (p.log() - q.log())).sum(-1)
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(divergence(teacher + 3, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    shown = torch.tensor([True, False, True, True, False])
    assert float(divergence(student, teacher, 2.0, shown)) == pytest.approx(float(expected[shown].mean()), rel=1e-5)


def test_divergence_takes_classes_that_are_masked_out() -> None:
    teacher = torch.tensor([[0.5, -torch.inf, 1.0]])
    student = torch.tensor([[0.1, -5.0, 1.0]], requires_grad=True)
    loss = divergence(student, teacher, 1.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_classes_that_both_mask_out_add_nothing() -> None:
    teacher = torch.tensor([[0.5, -torch.inf, 1.0], [2.0, -torch.inf, -1.0]])
    student = torch.tensor([[0.1, -torch.inf, 1.0], [0.0, -torch.inf, 3.0]], requires_grad=True)
    loss = divergence(student, teacher, 2.0)
    loss.backward()
    expected = divergence(student[:, ::2].detach(), teacher[:, ::2], 2.0)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert torch.isfinite(student.grad).all() and not student.grad[:, 1].any() and student.grad[:, ::2].all()
    # What is no number is not taken for a masked class.
    assert torch.isnan(divergence(student.detach(), torch.full((2, 3), torch.nan), 2.0))


def test_ignored_labels_do_not_count() -> None:
    logits = torch.randn(2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, 0, 4]])
    kept = labels.flatten() != -100
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1)[kept], labels.flatten()[kept])
    assert float(label_error(logits, labels)) == pytest.approx(float(expected), rel=1e-6)
    assert float(label_error(logits, torch.full((2, 3), -100))) == 0


@pytest.mark.parametrize("decay", ["linear", "cosine", "none"])
def test_the_rate_rises_once_and_never_rises_again(decay: str) -> None:
    rates = [rate_factor(point / 100, 0.1, decay) for point in range(101)]
    assert rates[0] == 0 and rates[5] == pytest.approx(0.5) and rates[10] == 1
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(1 if decay == "none" else 0)


def observed(inputs: np.ndarray, outputs: np.ndarray):
    observer = MomentsObserver("layer")
    observer.update(inputs, outputs)
    return observer.moments


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 0.9), inputs=st.integers(1, 8), outputs=st.integers(1, 6))
def test_masked_least_squares_is_the_least_there_is(seed: int, share: float, inputs: int, outputs: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(0, 1, (60, inputs)), generator.normal(0, 1, (60, outputs))
    free = generator.random((inputs + 1, outputs)) >= share
    begun = generator.normal(0, 1, (inputs + 1, outputs))
    moments = observed(x, y)
    found = masked_least_squares(moments, begun, free, iterations=60)
    assert np.array_equal(found[~free], begun[~free])
    with_ones = np.hstack([x, np.ones((60, 1))])
    for column in range(outputs):
        chosen = free[:, column]
        rest = y[:, column] - with_ones[:, ~chosen] @ begun[~chosen, column]
        best, *_ = np.linalg.lstsq(with_ones[:, chosen], rest, rcond=None)
        np.testing.assert_allclose(found[chosen, column], best, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), iterations=st.integers(1, 12))
def test_every_iteration_lowers_the_error_also_where_data_is_scarce(seed: int, iterations: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(0, 1, (5, 12)), generator.normal(0, 1, (5, 3))
    x[:, 3] = 0
    moments, begun = observed(x, y), generator.normal(0, 1, (13, 3))
    free = generator.random((13, 3)) > 0.3
    errors = [
        moments.error(masked_least_squares(moments, begun, free, iterations=count))
        for count in (0, iterations, iterations + 1)
    ]
    # Sums of about 60 terms of size 10 to 100, in float64.
    assert errors[2] <= errors[1] + 1e-9 and errors[1] <= errors[0] + 1e-9


@pytest.mark.parametrize(("scale", "shift"), [(True, True), (True, False), (False, True)])
def test_scales_and_shifts_are_those_of_least_error(scale: bool, shift: bool) -> None:
    generator = np.random.default_rng(3)
    x, matrix = generator.normal(1, 1, (80, 6)), generator.normal(0, 1, (7, 4))
    made = np.hstack([x, np.ones((80, 1))]) @ matrix
    y = made * generator.uniform(0.5, 2, 4) + generator.normal(0, 1, 4) + generator.normal(0, 0.1, made.shape)
    found = scaled_and_shifted(observed(x, y), matrix, scale=scale, shift=shift)
    for output in range(4):
        columns = [made[:, output]] * scale + [np.ones(80)] * shift
        fixed = 0 if scale else made[:, output]
        best, *_ = np.linalg.lstsq(np.stack(columns, 1), y[:, output] - fixed, rcond=None)
        factor, added = (best[0] if scale else 1.0), (best[-1] if shift else 0.0)
        np.testing.assert_allclose(found[:-1, output], factor * matrix[:-1, output], rtol=1e-7)
        np.testing.assert_allclose(found[-1, output], factor * matrix[-1, output] + added, rtol=1e-7)


def test_an_output_that_never_varies_keeps_its_scale() -> None:
    x, matrix = np.random.default_rng(0).normal(0, 1, (40, 3)), np.zeros((4, 2))
    matrix[:, 1], matrix[-1, 0] = 1.0, 2.0
    found = scaled_and_shifted(observed(x, np.ones((40, 2))), matrix, scale=True, shift=True)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], [0, 0, 0, 1.0], atol=1e-9)
