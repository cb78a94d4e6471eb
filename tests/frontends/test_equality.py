"""Equal means equal up to another order of summation, and nothing more."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.frontends.equality import RELATIVE_TOLERANCE, find_difference

VALUES = np.array([[-4.0, 0.5], [1e-8, 2.0]], np.float32)


def test_equal_outputs_have_no_difference() -> None:
    assert find_difference({"y": VALUES}, {"y": VALUES.copy()}) == ""
    empty = np.zeros((0, 3), np.float32)
    assert find_difference({"y": empty}, {"y": empty}) == ""


@given(st.floats(-3, 3))
def test_the_tolerance_is_relative_to_the_largest_value(factor: float) -> None:
    moved = VALUES.astype(np.float64)
    moved[1, 0] += factor * RELATIVE_TOLERANCE * 4.0
    assert bool(find_difference({"y": VALUES.astype(np.float64)}, {"y": moved})) == (abs(factor) > 1)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"z": VALUES}, "became"),
        ({"y": VALUES[:1]}, "changed from"),
        ({"y": VALUES.astype(np.float64)}, "changed from"),
        ({"y": np.full_like(VALUES, np.nan)}, "differs by nan"),
        ({"y": np.where(VALUES == 2, np.inf, VALUES)}, "differs by inf"),
    ],
)
def test_differences_are_described(found: dict[str, np.ndarray], said: str) -> None:
    assert said in find_difference({"y": VALUES}, found)


def test_integers_and_flags_must_be_identical() -> None:
    labels = np.array([1, 2, 3])
    assert find_difference({"y": labels}, {"y": labels + np.array([0, 0, 1])}) == "output `y` differs in 1 of 3 values"
    assert find_difference({"y": labels > 1}, {"y": labels > 2})


def test_what_is_not_finite_must_stay_as_it_is() -> None:
    masked = np.array([0.0, -np.inf, np.nan], np.float32)
    assert find_difference({"y": masked}, {"y": masked.copy()}) == ""
    assert "not finite" in find_difference({"y": masked}, {"y": np.array([0.0, np.inf, np.nan], np.float32)})
    assert "not finite" in find_difference({"y": masked}, {"y": np.array([0.0, -np.inf, 0.0], np.float32)})
