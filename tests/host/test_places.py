"""A fault is placed in the plugin's own code, however deep in a library it came up."""

import json
import logging
from pathlib import Path

import pytest

from edgesmith.errors import StepError
from edgesmith.host.places import definition_of, home_of, own_frame, show_frame
from edgesmith.testing import isolated_registry, run_method, tiny_mlp

BAD_PLUGINS = Path(__file__).parents[1] / "bad_plugins"


def test_a_package_is_its_folder_and_a_file_is_itself():
    (folder,) = home_of("json.decoder")
    assert Path(folder) == Path(json.__file__).parent
    assert home_of(TestedClass.__module__) == (__file__,)


class TestedClass:
    """A class of this file."""

    __test__ = False


@pytest.mark.parametrize(
    ("files", "place"),
    [
        (["/host/step.py", "/site/mine/apply.py", "/site/mine/inner.py", "/site/numpy/linalg.py"], " at inner.py:2"),
        (["/site/mine/apply.py", "/site/numpy/linalg.py", "/site/mine/callback.py"], " at callback.py:2"),
        (["/site/mine_too/apply.py", "/site/numpy/linalg.py"], " at linalg.py:1"),
        ([], ""),
    ],
)
def test_the_last_frame_in_the_plugin_counts_and_a_like_named_folder_is_not_the_plugin(files, place):
    assert show_frame(own_frame([(file, line) for line, file in enumerate(files)], ["/site/mine"])) == place


def test_definitions_are_found_where_python_knows_them():
    assert definition_of(test_definitions_are_found_where_python_knows_them)[0] == __file__
    assert definition_of(len) is None
    assert definition_of(None) is None


@pytest.mark.parametrize(
    ("name", "depth"), [("crash_in_library", "_linalg.py"), ("raising_tensor", "raising_tensor.py")]
)
def test_the_whole_traceback_is_logged(name, depth, caplog):
    caplog.set_level(logging.DEBUG, logger="edgesmith.host")
    with pytest.raises(StepError):
        run_method(isolated_registry(BAD_PLUGINS / f"{name}.py"), name.replace("_", "-"), tiny_mlp())
    (record,) = (record for record in caplog.records if record.exc_info)
    assert depth in caplog.handler.formatter.formatException(record.exc_info)
