"""What the benchmark of folding does for which arguments."""

from argparse import Namespace

import pytest
from benchmarks.folding import SHARING, plans

NONE = {"sharing": False, "only_sharing": False, "share": None}
ONE = next(iter(SHARING))


@pytest.mark.parametrize(
    ("given", "removed", "shared"),
    [
        ({}, 1, []),
        ({"share": [ONE]}, 1, [ONE]),
        ({"sharing": True}, 1, list(SHARING)),
        ({"sharing": True, "share": [ONE]}, 1, [ONE]),
        ({"only_sharing": True}, 0, list(SHARING)),
        ({"only_sharing": True, "share": [ONE]}, 0, [ONE]),
    ],
)
def test_ways_to_share_that_are_named_are_measured(given, removed, shared):
    found = plans(Namespace(count=[3], score=["SLEB"], form=["none"], seeds=1, random_seeds=1, **{**NONE, **given}))
    assert [plan["method"] for plan in found].count("remove-blocks") == removed
    assert [plan["name"] for plan in found if plan["method"] == "share-blocks"] == shared
