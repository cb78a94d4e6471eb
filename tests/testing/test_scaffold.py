"""What `edgesmith plugin new` writes works as it is.

By default four kinds pass their own tests in this environment; the method is built, installed beside a wheel of
Edgesmith into a fresh environment, tested and used there. The slow run does that for every kind, and type-checks all.
"""

import ast
import importlib.util
import json
import os
import re
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from edgesmith import __version__
from edgesmith.cli import main
from edgesmith.errors import OutputError, PluginError
from edgesmith.scaffold import KINDS, LONGEST_NAME, _core_range, create_plugin
from edgesmith.serialization import write_onnx
from edgesmith.testing import tiny_bert

ROOT = Path(__file__).parents[2]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")


def name_of(kind: str) -> str:
    return f"my-{kind}-example"


@pytest.fixture
def create(tmp_path):
    """Return a function that writes a project and returns its folder."""

    def create(kind: str) -> Path:
        create_plugin(name_of(kind), kind, tmp_path)
        return tmp_path / name_of(kind)

    return create


def run(*command: object, folder: Path | None = None, **environment: str) -> str:
    """Run a program and return what it prints; fail with all it printed."""
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_is_complete(create, kind):
    folder, module = create(kind), name_of(kind).replace("-", "_")
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["name"] == name_of(kind)
    assert project["project"]["entry-points"] == {"edgesmith": {name_of(kind): module}}
    assert re.fullmatch(r"edgesmith>=\d+\.\d+,<\d+(\.\d+)?", project["project"]["dependencies"][0])
    workflow = yaml.safe_load((folder / ".github" / "workflows" / "test.yml").read_text())
    steps = workflow["jobs"]["test"]["steps"]
    assert [step["run"].split()[0] for step in steps if "run" in step] == [
        "python",
        "ruff",
        "mypy",
        "pytest",
        "edgesmith",
    ]
    assert steps[1]["with"]["python-version"] == "${{ matrix.python }}"
    for file in ("LICENSE", "README.md", ".gitignore", f"src/{module}/py.typed", "tests/test_conformance.py"):
        assert (folder / file).is_file(), file
    text = "".join(path.read_text() for path in folder.rglob("*") if path.is_file())
    assert "{{ name" not in text and "{%" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_declares_what_it_imports(create, kind):
    folder = create(kind)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    requirements = (*project["dependencies"], *project["optional-dependencies"]["test"])
    declared = {re.split("[<>=]", one)[0] for one in requirements}
    imported = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            imported |= {name.partition(".")[0] for name in names}
    assert imported - sys.stdlib_module_names - {name_of(kind).replace("-", "_")} <= declared


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.6.2", ">=0.6,<0.7"), ("1.4.0", ">=1.4,<2"), ("1.0rc1", ">=1.0rc1,<2"), ("0.7.dev3", ">=0.7.dev3,<0.8")],
)
def test_a_project_takes_the_version_that_wrote_it(version, expected):
    assert _core_range(version) == expected
    assert SpecifierSet(expected).contains(version, prereleases=True)


@pytest.mark.parametrize("name", ["a", "x" * LONGEST_NAME, "my-quite-long-name-of-a-new-kind"])
def test_lint_and_format_are_clean_whatever_the_name(tmp_path, name):
    for kind in KINDS:
        create_plugin(name, kind, tmp_path / kind)
    for command in (["check"], ["format", "--check"]):
        run(sys.executable, "-m", "ruff", *command, "--no-cache", tmp_path)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "method"])
def test_a_project_passes_its_own_tests(create, kind):
    folder = create(kind)
    # The process of their own, and the whole matrix of the conformance suite, run where the project is installed.
    run(
        *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *(
            "--deselect",
            f"tests/test_conformance.py::test_it_conforms[{name_of(kind)}: another process gives the same bytes]",
        ),
        folder=folder,
        PYTHONPATH=str(folder / "src"),
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Halve", "lower-case words"),
        ("halve_weights", "lower-case words"),
        ("-halve", "lower-case words"),
        ("../halve", "lower-case words"),
        ("", "lower-case words"),
        ("x" * (LONGEST_NAME + 1), "lower-case words"),
        ("class", "word or module of Python"),
        ("json", "word or module of Python"),
        ("numpy", "can be imported already"),
        ("edgesmith-quantization", "can be imported already"),
        ("quantize-int8", "brings something of that name"),
    ],
)
def test_a_name_that_would_clash_is_refused(tmp_path, name, reason):
    with pytest.raises(PluginError, match=reason):
        create_plugin(name, "method", tmp_path, taken={"quantize-int8"})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(PluginError, match="no kind 'frontend'"):
        create_plugin("halve", "frontend", tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "halve").mkdir()
    (tmp_path / "halve" / "pyproject.toml").write_text("mine")
    with pytest.raises(OutputError, match="there already"):
        create_plugin("halve", "method", tmp_path)
    assert (tmp_path / "halve" / "pyproject.toml").read_text() == "mine"


def test_the_commands_write_a_project_and_refuse_a_second_one(tmp_path, capsys):
    arguments = ["plugin", "new", "halve", "--kind", "lint", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    written = json.loads(capsys.readouterr().out)
    assert {
        str(path.relative_to(tmp_path / "halve")) for path in (tmp_path / "halve").rglob("*") if path.is_file()
    } == {*written["files"]}
    assert main(arguments) == 2
    assert main(["plugin", "new", "sqnr", "--kind", "metric", "--out", str(tmp_path)]) == 2
    assert "brings something of that name" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_project_works_installed_from_wheels(create, kind, tmp_path, request):
    """Build the project and Edgesmith, install both into a fresh environment, and use the plugin there."""
    # The method stands for all where heavy tests are not asked for; its own tests run here only.
    if kind != "method" and "slow" not in request.config.option.markexpr:
        pytest.skip("heavy; run `pytest -m slow`")
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("python -m pip install hatchling")
    folder, name = create(kind), name_of(kind)
    wheels = [build(folder, tmp_path / "wheels"), build(ROOT, tmp_path / "wheels")]
    python = fresh_environment(tmp_path / "environment")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    command = (python, "-m", "edgesmith")
    listed = json.loads(run(*command, "plugins", "--json", folder=tmp_path))
    assert listed["broken"] == []
    versions = {plugin["distribution"]: plugin["version"] for plugin in listed["plugins"]}
    assert versions[name] == "0.1.0"
    assert versions["edgesmith"] == __version__
    run(python, *PYTEST[1:], folder=folder)
    report = json.loads(run(*command, "plugin", "check", name, "--quick", "--json", folder=tmp_path))
    assert report["ok"]
    assert name in compile_with(kind, command, tmp_path)


@pytest.mark.slow
def test_every_project_is_clean_for_the_type_checker(create, request):
    if "slow" not in request.config.option.markexpr:
        pytest.skip("heavy; run `pytest -m slow`")
    for kind in KINDS:
        # One for each, since their files bear the same names.
        cache = ROOT / "build" / "mypy-of-new-plugins" / kind
        run(sys.executable, "-m", "mypy", "--cache-dir", cache, folder=create(kind))


BUILD = "import importlib, sys; importlib.import_module(sys.argv[1]).build_wheel(sys.argv[2])"


def build(folder: Path, out: Path) -> Path:
    """Return the wheel of a project, built as pip does it without isolation: by the backend that the project names."""
    backend = tomllib.loads((folder / "pyproject.toml").read_text())["build-system"]["build-backend"]
    before = set(out.glob("*.whl"))
    out.mkdir(exist_ok=True)
    run(sys.executable, "-c", BUILD, backend, out, folder=folder)
    (wheel,) = set(out.glob("*.whl")) - before
    return wheel


def fresh_environment(folder: Path) -> Path:
    """Return the Python of a new environment that sees the packages of this one, but not its Edgesmith."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    # A .pth file is read line by line, so the environment's own packages come first. An editable install of Edgesmith
    # is a .pth file of its own there, and those are not followed.
    (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def compile_with(kind: str, command: tuple[object, ...], folder: Path) -> str:
    """Compile a tiny model with the installed plugin and return the ledger, in which the plugin must appear."""
    name = name_of(kind)
    model, recipe = folder / "tiny.onnx", folder / "recipe.yaml"
    write_onnx(tiny_bert().ir, model)
    steps = [{"method": name}] if kind == "method" else []
    recipe.write_text(yaml.safe_dump({"steps": steps} | ({"metric": name} if kind == "metric" else {})))
    target = {"target": name, "runner": f"onnx-cpu-by-{name}"}.get(kind, "onnx-cpu")
    return run(
        *(*command, "compile", model, "--recipe", recipe, "--target", target, "--out", folder / "artifact"),
        *("--threads", "1", "--json"),
        EDGESMITH_STORE=str(folder / "store"),
        folder=folder,
    )
