"""The order of methods that the page gives is one that every record takes."""

import re

import pytest
from tests.docs.test_documentation import DOCS, REGISTRY, section

from edgesmith.errors import RecipeError
from edgesmith.host.order import check_order


def test_the_page_names_every_method_in_an_order_that_all_take():
    text = section((DOCS / "plugins" / "order.md").read_text(), "The methods of Edgesmith")
    steps = re.findall(r"^\d+\. ((?:`[\w-]+`(?:, )?)+)", text, re.MULTILINE)
    names = [name for step in steps for name in re.findall(r"`([\w-]+)`", step)]
    assert sorted(names) == sorted(record.name for record in REGISTRY.methods())
    quantizers = [name for name in names if name.startswith("quantize-")]
    for last in quantizers:
        chosen = [name for name in names if name not in quantizers or name == last]
        check_order(tuple(REGISTRY.method(name) for name in chosen), REGISTRY)


@pytest.mark.parametrize(
    "names",
    [
        ("merge-tokens", "aggregate-tokens"),
        ("static-attention", "merge-tokens"),
        ("static-attention", "aggregate-tokens"),
        ("quantize-int8", "remove-blocks"),
    ],
    ids=" ".join,
)
def test_what_the_page_rules_out_is_refused_before_a_model_is_read(names):
    records = tuple(REGISTRY.method(name) for name in names)
    with pytest.raises(RecipeError, match=f"{names[1]} after {names[0]}"):
        check_order(records, REGISTRY)
    check_order(records[::-1], REGISTRY)
