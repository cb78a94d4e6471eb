"""Runs a script in a process of its own and reads its answer, the last line on its standard output, as JSON.

For code that prints, that holds much memory, or whose native parts may end their process.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ChildAnswer:
    """What a script answered, or why there is no answer."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """One line; empty where there is an answer."""


def ask_child(script: str, words: Sequence[str], *, longest_seconds: float) -> ChildAnswer:
    """Return what `script`, run by this Python with the arguments `words`, says in its last line.

    Args:
        script: Path of a Python file.
        words: Its arguments.
        longest_seconds: It is killed after so long.
    """
    command = [sys.executable, script, *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=longest_seconds, check=False)
    except subprocess.TimeoutExpired:
        return ChildAnswer(problem=f"it did not answer within {longest_seconds:.0f} s")
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        facts = None
    if isinstance(facts, dict):
        return ChildAnswer(facts)
    ending = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return ChildAnswer(problem=f"it ended without an answer: {ending[0]}")
