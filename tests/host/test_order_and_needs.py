"""What a recipe may combine, and what it must be given, decided from records alone."""

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.cli import main
from edgesmith.errors import PluginError, RecipeError
from edgesmith.host.needs import check_needs, extras_with, missing_packages
from edgesmith.host.order import check_order, declared_by_others, find_order, find_violations
from edgesmith.host.records import Guarantee, Kind, MethodRecord, Needs, Order, TargetRecord
from edgesmith.host.registry import Registry
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


def two_strangers(first: MethodRecord, second: MethodRecord) -> Registry:
    """Return a registry of two distributions that never heard of each other."""
    plugins = [
        isolated_registry(records=(record,), distribution=name, version=version).plugins[0]
        for record, name, version in ((first, "sparse-lab", "2.1"), (second, "tiny-codes", "0.7"))
    ]
    return Registry(plugins)


SPARSIFY = record("sparsify", Kind.PRUNE, tags=("sparse",), before=("quantize",))
ENCODE = record("encode", Kind.QUANTIZE, tags=("codes",), excludes=("sparse",))


def test_strangers_are_held_against_each_other_by_kind_and_tag():
    encode = replace(ENCODE, order=Order(after=("sparse",)))
    registry = two_strangers(SPARSIFY, encode)
    with pytest.raises(RecipeError) as caught:
        check_order((encode, SPARSIFY), registry)
    for part in (
        # Seen from either side, the numbers stand in the order of the names.
        "sparsify after encode (step 2 and step 1): `encode` declares after=sparse",
        "sparsify after encode (step 2 and step 1): `sparsify` declares before=quantize, from sparse-lab 2.1 "
        "(quantize is the kind of `encode`, from tiny-codes 0.7)",
        "`encode` declares after=sparse, from tiny-codes 0.7 (sparse is the tag of `sparsify`, from sparse-lab 2.1)",
    ):
        assert part in caught.value.what
    assert caught.value.fix == "Order the steps so: sparsify, encode."
    check_order((SPARSIFY, encode), registry)


def test_strangers_that_exclude_each_other_are_named_with_the_way_out():
    registry = two_strangers(SPARSIFY, ENCODE)
    for steps in ((SPARSIFY, ENCODE), (ENCODE, SPARSIFY)):
        with pytest.raises(RecipeError) as caught:
            check_order(steps, registry)
        assert "`encode` declares excludes=sparse, from tiny-codes 0.7" in caught.value.what
        assert caught.value.fix == "Remove `encode` or `sparsify`."


def test_strangers_that_contradict_each_other_are_not_sent_in_circles():
    first = record("first", Kind.PRUNE, before=("quantize",))
    second = record("second", Kind.QUANTIZE, before=("prune",))
    registry = two_strangers(first, second)
    for steps in ((first, second), (second, first)):
        with pytest.raises(RecipeError) as caught:
            check_order(steps, registry)
        assert caught.value.fix.startswith("No order satisfies all of them. Remove one of `")
        assert "`first`" in caught.value.fix and "`second`" in caught.value.fix


def test_a_listing_says_what_others_declare_of_a_method():
    registry = two_strangers(SPARSIFY, ENCODE)
    assert declared_by_others(ENCODE, registry) == (
        "must stand after sparsify, which sparse-lab 2.1 declares with before=quantize",
    )
    assert declared_by_others(SPARSIFY, registry) == (
        "is excluded by encode, which tiny-codes 0.7 declares with excludes=sparse",
    )


WORDS = ["a", "b", "c", "prune", "quantize", "t"]
ORDERS = st.lists(st.sampled_from(WORDS), max_size=2).map(tuple)
RECORDS = st.builds(
    lambda name, kind, tagged, before, after: record(name, kind, tags=tagged, before=before, after=after),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([Kind.PRUNE, Kind.QUANTIZE]),
    st.sampled_from([(), ("t",)]),
    ORDERS,
    ORDERS,
)


@given(st.lists(RECORDS, max_size=5))
def test_an_order_is_found_exactly_where_there_is_one(records):
    satisfying = [
        order for order in permutations(range(len(records))) if not find_violations([records[step] for step in order])
    ]
    found = find_order(records)
    assert (found in satisfying) if satisfying else found is None
    if tuple(range(len(records))) in satisfying:
        assert found == tuple(range(len(records)))


def test_the_order_is_checked_before_a_model_is_looked_for(tmp_path, capsys):
    plugin = tmp_path / "stranger.py"
    plugin.write_text(
        "import edgesmith\n\n\n@edgesmith.hookimpl\ndef register_methods():\n"
        "    return [edgesmith.MethodRecord(name='late', version='1', summary='Late.', entry='absent:Method',\n"
        "        kind=edgesmith.Kind.PRUNE, options='edgesmith.host.options:NoOptions',\n"
        "        guarantee=edgesmith.Guarantee.LOSSY, order=edgesmith.Order(before=('quantize',)))]\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{method: quantize-weights}, {method: late}]")
    words = ["compile", str(tmp_path / "absent.onnx"), "--recipe", str(recipe), "--out", str(tmp_path / "out")]
    assert main(["--plugin", str(plugin), *words]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "`late` declares before=quantize, from file:stranger 0+" in error
    assert "absent.onnx" not in error


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


def test_a_missing_package_of_an_extra_names_the_extra():
    for text, extra in (("executorch>=1.5", "executorch"), ("executorch>=99", ""), ("torch>=2.8", "torch")):
        assert extras_with((text,)) == (f', or the extra "edgesmith[{extra}]"' if extra else "")
    assert extras_with(("executorch>=1.5", "torch>=2.8")) == ', or the extra "edgesmith[executorch,torch]"'


def test_tags_do_not_leak_between_methods():
    other = replace(QUANTIZE, name="quantize-int4", tags=("int4",))
    assert find_violations((other, record("one", Kind.FOLD, before=("int8",)))) == ()
