"""Hashes of the files that options name: whatever a step reads is part of what it is known by."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from edgesmith.host.options import hash_named_files


class Inner(BaseModel):
    table: Path
    scale: float = 1.0


class Named(BaseModel):
    one: Path | None = None
    files: tuple[Path, ...] = ()
    by_name: dict[str, Path | int] = {}
    group: frozenset[Path] = frozenset()
    inner: Inner | None = None
    text: str = "a/path"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "a.bin").write_bytes(b"first")
    (tmp_path / "b.bin").write_bytes(b"second")
    return tmp_path


def options(folder: Path) -> Named:
    file, directory = folder / "b.bin", folder / "data"
    return Named(
        one=directory,
        files=(file, directory),
        by_name={"x": file, "y": 3},
        group=frozenset({file}),
        inner=Inner(table=file),
    )


def test_every_named_file_has_a_hash_whatever_holds_its_name(folder: Path) -> None:
    found = hash_named_files(options(folder))
    assert set(found) == {"one", "files.0", "files.1", "by_name.x", "group.0", "inner.table"}
    assert len({found[name] for name in ("files.0", "by_name.x", "group.0", "inner.table")}) == 1
    assert found["one"] == found["files.1"] != found["files.0"]
    assert all(len(each) == 64 for each in found.values())


@pytest.mark.parametrize(
    ("changed", "names"),
    [("b.bin", {"files.0", "by_name.x", "group.0", "inner.table"}), ("data/deep/a.bin", {"one", "files.1"})],
)
def test_other_content_gives_another_hash(folder: Path, changed: str, names: set[str]) -> None:
    before = hash_named_files(options(folder))
    (folder / changed).write_bytes(b"third")
    after = hash_named_files(options(folder))
    assert {name for name in before if before[name] != after[name]} == names


def test_what_is_missing_has_no_hash(tmp_path: Path) -> None:
    assert hash_named_files(Named(files=(tmp_path / "nowhere",))) == {"files.0": ""}
    assert hash_named_files(Named()) == {}
