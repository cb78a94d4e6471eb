"""The last line of a script is its answer; all else is a problem in one line."""

import pytest

from edgesmith.child_answer import ask_child


def asked(tmp_path, code, *words, seconds=30.0):
    script = tmp_path / "script.py"
    script.write_text(code)
    return ask_child(str(script), words, longest_seconds=seconds)


def test_the_last_line_is_read(tmp_path):
    code = "import sys\nprint('noise')\nprint('{\"words\": \"' + sys.argv[1] + '\"}')\nsys.exit(1)"
    answer = asked(tmp_path, code, "a b; c")
    assert (answer.facts, answer.problem) == ({"words": "a b; c"}, "")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('broken\\nin two')", "in two"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
        ("print('[1]')", "exit code 0"),
        ("pass", "exit code 0"),
    ],
)
def test_no_answer_is_a_problem_in_one_line(tmp_path, code, words):
    answer = asked(tmp_path, code)
    assert not answer.facts
    assert words in answer.problem and "\n" not in answer.problem


def test_a_script_that_hangs_is_killed(tmp_path):
    assert "within 1 s" in asked(tmp_path, "import time\ntime.sleep(600)", seconds=1.0).problem
