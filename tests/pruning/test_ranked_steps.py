"""Plans from error curves: cheapest first, widths that stay multiples of a tile."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgesmith_pruning.allocation.global_ranking import Curve, ranked


@st.composite
def curves(draw):
    found = {}
    for name in "abc":
        width, step = draw(st.integers(1, 20)), draw(st.sampled_from([1, 4, 8]))
        rises = draw(st.lists(st.floats(0, 10), min_size=0, max_size=width))
        found[name] = width, Curve(np.array(rises), draw(st.floats(0.1, 5)), step, first=width % step)
    return found


@given(curves(), st.floats(0, 1))
def test_what_stays_is_whole_or_a_multiple_of_the_tile(drawn, level):
    plan = ranked({name: curve for name, (_, curve) in drawn.items()})(level)
    for name, (width, curve) in drawn.items():
        assert 0 <= plan[name] <= len(curve.rises)
        assert plan[name] == 0 or (width - plan[name]) % curve.step == 0


@given(curves(), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_level_never_gives_anything_back(drawn, first, second):
    family = ranked({name: curve for name, (_, curve) in drawn.items()})
    low, high = family(min(first, second)), family(max(first, second))
    assert all(low[name] <= high[name] for name in drawn)


def test_what_costs_least_for_what_it_saves_goes_first():
    family = ranked({"dear": Curve(np.full(8, 2.0), 1.0, 4), "cheap": Curve(np.full(10, 1.0), 1.0, 4, first=2)})
    assert family(0.3) == {"dear": 0, "cheap": 2}
    assert family(0.6) == {"dear": 0, "cheap": 10}
    assert family(1.0) == {"dear": 8, "cheap": 10}
