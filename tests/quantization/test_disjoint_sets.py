"""Sets that grow together hold what a naive merging of sets holds."""

from hypothesis import given
from hypothesis import strategies as st

from edgesmith_quantization.finding.disjoint_sets import DisjointSets

PAIRS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30)


@given(PAIRS)
def test_members_of_one_set_have_one_root_and_others_another(pairs):
    sets = DisjointSets[int]()
    naive = {item: {item} for item in range(13)}
    for first, second in pairs:
        sets.join(first, second)
        union = naive[first] | naive[second]
        naive |= dict.fromkeys(union, union)
    for first in naive:
        for second in naive:
            assert (sets.root(first) == sets.root(second)) == (second in naive[first])


def test_an_item_that_was_never_joined_is_its_own_root():
    assert DisjointSets[str]().root("a") == "a"
