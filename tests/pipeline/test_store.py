"""The store: keys, facts, and what a killed or damaging run leaves."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.store import Store, default_store_directory, make_key

JSON = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.none() | st.booleans(), max_size=4)


@given(JSON, JSON)
def test_keys_are_equal_exactly_when_the_parts_are(first: dict[str, object], second: dict[str, object]) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (make_key(first) == make_key(second)) is same
    assert make_key(first) == make_key(dict(reversed(first.items())))


def test_keys_are_full_hashes() -> None:
    assert len(make_key({"a": 1})) == 64


def test_not_a_number_is_no_part_of_a_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        make_key({"a": float("nan")})


def test_facts_come_back_and_survive_a_new_store_object(tmp_path: Path) -> None:
    key = make_key({"a": 1})
    assert Store(tmp_path).facts(key) is None
    Store(tmp_path).keep_facts(key, {"value": 1.5, "names": ["a"]})
    assert Store(tmp_path).facts(key) == {"value": 1.5, "names": ["a"]}


def test_damaged_facts_count_as_absent(tmp_path: Path) -> None:
    store, key = Store(tmp_path), make_key({"a": 1})
    store.keep_facts(key, {"value": 1})
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:-3])
    assert store.facts(key) is None


def test_the_place_is_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "here"))
    assert default_store_directory() == tmp_path / "here"
    monkeypatch.delenv("EDGESMITH_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_store_directory() == tmp_path / "edgesmith"


def write_notes(directory: Path) -> dict[str, object]:
    (directory / "notes.txt").write_text("kept")
    return {"entry": "notes.txt"}


def test_files_come_back_with_their_facts(tmp_path: Path) -> None:
    key = make_key({"a": 1})
    kept = Store(tmp_path).keep_files("builds", key, write_notes)
    found = Store(tmp_path).files("builds", key)
    assert found == kept and (found.directory / found.facts["entry"]).read_text() == "kept"


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "files" / "notes.txt").write_text("kep"),
        lambda entry: (entry / "files" / "notes.txt").unlink(),
        lambda entry: (entry / "files" / "more.txt").write_text(""),
        lambda entry: (entry / "facts.json").write_text("{}"),
        lambda entry: (entry / "facts.json").write_text("[]"),
        lambda entry: (entry / "facts.json").unlink(),
    ],
    ids=["changed", "missing", "added", "empty facts", "other facts", "no facts"],
)
def test_damaged_files_count_as_absent_and_are_replaced(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    store, key = Store(tmp_path), make_key({"a": 1})
    damage(store.keep_files("builds", key, write_notes).directory.parent)
    assert store.files("builds", key) is None
    store.keep_files("builds", key, write_notes)
    assert store.files("builds", key) is not None


@pytest.mark.parametrize("ending", [KeyboardInterrupt, None, ValueError])
def test_unfinished_work_stays_only_when_it_was_stopped_from_outside(tmp_path: Path, ending: type | None) -> None:
    store, key = Store(tmp_path), make_key({"a": 1})
    with suppress(KeyboardInterrupt, ValueError), store.unfinished(key) as directory:
        directory.mkdir(parents=True)
        (directory / "state").write_text("half")
        if ending is not None:
            raise ending
    stays = ending is KeyboardInterrupt
    assert (directory / "state").exists() is stays
    with store.unfinished(key) as again:
        assert again == directory and (again / "state").exists() is stays
    with store.unfinished(make_key({"a": 2})) as other:
        assert other != directory
