"""What a recipe may combine, and what it must be given, decided from records alone."""

from dataclasses import replace

import pytest

from edgesmith.errors import PluginError, RecipeError
from edgesmith.host.needs import check_needs, missing_packages
from edgesmith.host.order import check_order, find_violations
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order, TargetRecord
from edgesmith.testing import isolated_registry


def record(name: str, kind: Kind, *, tags=(), needs=None, **order) -> MethodRecord:
    return MethodRecord(
        name=name,
        version="1.0",
        summary="Does something.",
        entry="absent:Method",
        kind=kind,
        options="absent:Options",
        guarantee=Guarantee.LOSSY,
        order=Order(**order),
        tags=tags,
        needs=needs or Needs(),
    )


QUANTIZE = record("quantize-int8", Kind.QUANTIZE, tags=("int8",))
PRUNE = record("channel-prune", Kind.PRUNE, before=("quantize",))


def test_an_order_that_satisfies_everybody_is_silent():
    registry = isolated_registry(records=(QUANTIZE, PRUNE))
    check_order((PRUNE, QUANTIZE), registry)
    check_order((), registry)


def test_a_violation_says_who_declared_what_and_what_to_move():
    registry = isolated_registry(records=(QUANTIZE, PRUNE), distribution="edge-prune", version="0.3")
    with pytest.raises(RecipeError) as caught:
        check_order((QUANTIZE, PRUNE), registry)
    assert "channel-prune after quantize-int8" in caught.value.what
    assert "`channel-prune` declares before=quantize, from edge-prune 0.3" in caught.value.what
    assert caught.value.fix == "Move `channel-prune` before `quantize-int8`."


@pytest.mark.parametrize("word", ["quantize-int8", "quantize", "int8"])
def test_constraints_name_a_method_a_kind_or_a_tag(word):
    before = record("one", Kind.FOLD, before=(word,))
    after = record("two", Kind.RECOVER, after=(word,))
    excludes = record("three", Kind.PRUNE, excludes=(word,))
    assert [found.constraint for found in find_violations((QUANTIZE, before))] == ["before"]
    assert find_violations((before, QUANTIZE)) == ()
    assert [found.constraint for found in find_violations((after, QUANTIZE))] == ["after"]
    assert find_violations((QUANTIZE, after)) == ()
    for order in ((QUANTIZE, excludes), (excludes, QUANTIZE)):
        assert [found.constraint for found in find_violations(order)] == ["excludes"]


def test_an_after_violation_reads_the_right_way_round():
    recover = record("distil", Kind.RECOVER, after=("prune",))
    registry = isolated_registry(records=(recover, PRUNE))
    with pytest.raises(RecipeError) as caught:
        check_order((recover, PRUNE), registry)
    assert "channel-prune after distil" in caught.value.what
    assert caught.value.fix == "Move `distil` after `channel-prune`."


def test_a_constraint_on_its_own_kind_means_another_step():
    alone = record("only-once", Kind.QUANTIZE, excludes=("quantize",))
    assert find_violations((alone,)) == ()
    assert len(find_violations((alone, alone))) == 2


def test_every_violation_is_reported():
    registry = isolated_registry(records=(QUANTIZE, PRUNE))
    with pytest.raises(RecipeError) as caught:
        check_order((QUANTIZE, PRUNE, PRUNE), registry)
    assert caught.value.what.count("declares before=quantize") == 2


def test_packages_are_compared_with_what_is_installed():
    assert missing_packages(("pydantic>=1", 'absent-package; python_version < "3"')) == ()
    absent, too_old = missing_packages(("absent-package>=1", "pydantic>=99"))
    assert absent == "absent-package>=1 (not installed)"
    assert too_old.startswith("pydantic>=99 (installed: ")


@pytest.mark.parametrize(
    ("needs", "given", "fragment"),
    [
        (Needs(data=True), {"has_data": False}, "calibration data"),
        (Needs(labels=True), {"has_labels": False}, "labelled"),
        (Needs(gpu=True), {"has_gpu": False}, "GPU"),
    ],
)
def test_an_unmet_need_is_a_recipe_error(needs, given, fragment):
    with pytest.raises(RecipeError, match=fragment):
        check_needs(record("needy", Kind.FOLD, needs=needs), **given)


def test_met_needs_are_silent():
    needs = Needs(data=True, labels=True, gpu=True, packages=("pydantic>=1",))
    check_needs(record("needy", Kind.FOLD, needs=needs), has_data=True, has_labels=True, has_gpu=True)


def test_labels_that_are_not_known_yet_do_not_stop_a_recipe():
    check_needs(record("needy", Kind.FOLD, needs=Needs(labels=True)))


def test_a_missing_package_says_what_to_install():
    with pytest.raises(PluginError) as caught:
        check_needs(record("needy", Kind.FOLD, needs=Needs(packages=("absent-package>=1",))))
    assert caught.value.fix == 'Install it: pip install "absent-package>=1"'
    target = TargetRecord(name="board", version="1", summary="A board.", entry="a:B", packages=("absent-package",))
    with pytest.raises(PluginError, match="target 'board' needs absent-package"):
        check_needs(target)


def test_tags_do_not_leak_between_methods():
    other = replace(QUANTIZE, name="quantize-int4", tags=("int4",))
    assert find_violations((other, record("one", Kind.FOLD, before=("int8",)))) == ()
