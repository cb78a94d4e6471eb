"""The tutorial, followed by a machine: its blocks make the project, its commands run, and the example comes out."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugins" / "tutorial.md"
EXAMPLE = ROOT / "examples" / "plugins" / "edgesmith-lowrank"
FENCE = re.compile(r'^```(\w+) title="([^"]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One block of code on the page."""

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Command:
    """One line that a reader types, and lines that it prints, among others."""

    words: str
    printed: tuple[str, ...]


BLOCKS = [Block(*found) for found in FENCE.findall(PAGE.read_text())]
FILES = {block.title: block.text for block in BLOCKS if block.language != "console"}


def commands() -> list[Command]:
    """Return what a reader types in blocks titled "run"."""
    lines = "".join(block.text for block in BLOCKS if (block.language, block.title) == ("console", "run")).splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
    ends = [*starts[1:], len(lines)]
    return [Command(lines[start][2:], tuple(lines[start + 1 : end])) for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize("title", FILES)
def test_each_file_on_the_page_is_the_example_s(title):
    assert (EXAMPLE / title).read_text() == FILES[title]


def test_the_page_leaves_no_file_of_the_package_out():
    written = {title for title in FILES if title.startswith("src/")}
    assert written == {str(path.relative_to(EXAMPLE)) for path in (EXAMPLE / "src").rglob("*.py")}


def test_every_fence_of_the_page_is_read():
    assert PAGE.read_text().count("\n```") == 2 * len(BLOCKS)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with what the page says, and nothing else."""
    folder = tmp_path_factory.mktemp("tutorial")
    for title, text in FILES.items():
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def install(project: Path) -> Path:
    """Do what `pip install -e .` does for imports and metadata, without a network; return the folder for the path."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    site = project / ".site"
    information = site / f"{declared['name'].replace('-', '_')}-{declared['version']}.dist-info"
    information.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {declared['name']}", f"Version: {declared['version']}"]
    lines += [f"Requires-Dist: {text}" for text in declared["dependencies"]]
    (information / "METADATA").write_text("\n".join(lines) + "\n")
    entries = "\n".join(f"{name} = {module}" for name, module in declared["entry-points"]["edgesmith"].items())
    (information / "entry_points.txt").write_text(f"[edgesmith]\n{entries}\n")
    return site


def test_the_commands_of_the_page_do_what_it_says(project):
    environment = {**os.environ, "EDGESMITH_STORE": str(project / "store"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    typed = commands()
    assert len(typed) >= 7
    for command in typed:
        words = shlex.split(command.words)
        if words == ["pip", "install", "-e", "."]:
            paths = [str(install(project)), str(project / "src"), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
            continue
        program = {"edgesmith": [sys.executable, "-m", "edgesmith"], "python": [sys.executable]}[words[0]]
        done = subprocess.run(
            [*program, *words[1:]], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command.words}\n{done.stdout}{done.stderr}"
        shown = " ".join(done.stdout.split())
        for line in command.printed:
            assert " ".join(line.split()) in shown, f"{command.words} prints {shown}"
    report = (project / "artifact" / "report.html").read_text()
    assert "factorise-low-rank" in report and "edgesmith-lowrank 0.1.0" in report
    schema = (project / "recipe.schema.json").read_text()
    assert '"edgesmith-lowrank:factorise-low-rank"' in schema and "Share of the energy" in schema
