"""What must answer at once imports nothing heavy. Times are not tested here: they depend on the machine."""

import json
import pkgutil
import signal
import subprocess
import sys
import time

import pytest

import edgesmith.cli
import edgesmith.host
from edgesmith.cli import COMMANDS

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "transformers", "numpy"}

RUN = """
import contextlib, io, json, sys
from edgesmith.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown:
    code = main(sys.argv[1:])
print(json.dumps({"code": code, "shown": len(shown.getvalue()), "modules": sorted(sys.modules)}))
"""

IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps({"modules": sorted(sys.modules)}))
"""


def run(script: str, *arguments: str) -> dict:
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([*command.split(), "--help"] for command in COMMANDS),
        ["methods"],
        ["methods", "--json"],
        ["targets"],
        ["targets", "--json"],
        ["plugins"],
        ["doctor"],
    ],
    ids=" ".join,
)
def test_listings_and_help_import_nothing_heavy(arguments):
    report = run(RUN, *arguments)
    assert report["code"] == 0
    assert report["shown"] > 0
    assert not HEAVY & set(report["modules"])


def test_the_package_the_host_and_the_command_line_import_nothing_heavy():
    names = ["edgesmith", "edgesmith.builtin", "edgesmith.errors", "edgesmith.recipe"]
    for package in (edgesmith.host, edgesmith.cli):
        names += [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    assert not HEAVY & set(run(IMPORT, *names)["modules"])


def test_the_check_above_would_see_a_heavy_import():
    assert "numpy" in run(IMPORT, "edgesmith.model")["modules"]


def test_control_c_ends_a_command_with_one_line_and_exit_code_130(tmp_path, monkeypatch):
    # All that it says is compared: what other tests left in a store must not be remarked here.
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    started, plugin = tmp_path / "started", tmp_path / "sleepy.py"
    plugin.write_text(f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(300)\n")
    command = [sys.executable, "-c", "import sys; from edgesmith.cli import main; sys.exit(main())"]
    process = subprocess.Popen([*command, "--plugin", str(plugin), "methods"], stderr=subprocess.PIPE, text=True)
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert error == "Interrupted. Nothing is half written; the same command resumes.\n"
