"""Results are kept under the code that made them: its version, and its files where they are being written."""

import importlib.metadata
import sys

import pytest

from edgesmith import own_code
from edgesmith.store import make_key


@pytest.fixture(autouse=True)
def _fresh():
    own_code.own_version.cache_clear()
    yield
    own_code.own_version.cache_clear()


def package(folder, name, text):
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "rule.py").write_text(text)


def test_content_follows_each_file_of_each_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package(tmp_path, "first_of_two", "RATE = 1")
    package(tmp_path, "second_of_two", "RATE = 1")
    before = own_code.content("first_of_two", "second_of_two")
    assert before == own_code.content("first_of_two", "second_of_two")
    package(tmp_path, "second_of_two", "RATE = 2")
    assert own_code.content("first_of_two", "second_of_two") != before
    assert own_code.content("no_package_of_this_name") == ""
    assert not {"first_of_two", "second_of_two"} & set(sys.modules)


@pytest.mark.parametrize("editable", [True, False])
def test_a_key_follows_the_code_only_where_it_can_change_without_a_version(editable, monkeypatch):
    monkeypatch.setattr(own_code, "is_editable", lambda distribution: editable)
    keys = []
    for text in ("+one", "+two"):
        own_code.own_version.cache_clear()
        monkeypatch.setattr(own_code, "content", lambda *packages, text=text: text)
        keys.append(make_key({"kind": "step"}))
    assert (keys[0] != keys[1]) == editable


def test_a_key_follows_the_version(monkeypatch):
    monkeypatch.setattr(own_code, "is_editable", lambda distribution: False)
    first = make_key({"kind": "step"})
    own_code.own_version.cache_clear()

    class Newer:
        version = "99.0"

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Newer())
    assert make_key({"kind": "step"}) != first


def test_the_plugins_of_edgesmith_itself_count(monkeypatch):
    named = []
    monkeypatch.setattr(own_code, "is_editable", lambda distribution: True)
    monkeypatch.setattr(own_code, "content", lambda *packages: named.extend(packages) or "")
    own_code.own_version()
    assert {"edgesmith", "edgesmith_calibration", "edgesmith_quantization", "edgesmith_tensorrt"} <= set(named)
