"""Fixtures of the device tests: a small artifact, a home directory with keys, and a server to reach."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))

from device_fixtures import LoopbackSshServer
from measure_models import dense_model

import edgesmith
from edgesmith.device.address import Address
from edgesmith.device.ssh import SshTransport

NO_STEPS = {"version": 1, "steps": []}


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small network for a processor and for a Jetson, without any step."""
    folder = tmp_path_factory.mktemp("compiled")
    source = dense_model(folder / "dense.onnx")
    settings = edgesmith.Settings(threads=1, store=folder / "store")
    for target in ("onnx-cpu", "jetson-orin-nano"):
        edgesmith.compile(source, out=folder / target, target=target, recipe=NO_STEPS, settings=settings)
    return {target: folder / target for target in ("onnx-cpu", "jetson-orin-nano")}


@pytest.fixture
def artifact(compiled: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled["onnx-cpu"], tmp_path / "artifact"))


@pytest.fixture
def jetson_artifact(compiled: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled["jetson-orin-nano"], tmp_path / "jetson-artifact"))


@pytest.fixture
def device_folder(tmp_path: Path) -> Path:
    """Where the device's working directories are made, so that a test sees what is left there."""
    folder = tmp_path / "device with a space; and $(signs)"
    folder.mkdir()
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with one key of the user and no agent."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True)
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(folder / ".ssh" / "id_ed25519")
    (folder / ".ssh" / "id_ed25519").chmod(0o600)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture
def server(home: Path) -> Iterator[LoopbackSshServer]:
    key = asyncssh.read_private_key(home / ".ssh" / "id_ed25519")
    server = LoopbackSshServer(key)
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts_line())
    yield server
    server.close()


@pytest.fixture
def ssh(server: LoopbackSshServer, device_folder: Path) -> Iterator[SshTransport]:
    transport = SshTransport(Address("ssh", "127.0.0.1", "tester", server.port), str(device_folder), sys.executable)
    yield transport
    transport.close()


@pytest.fixture
def fake_trtexec(tmp_path, monkeypatch):
    """A device that has trtexec, or what plays it."""
    program = tmp_path / "tools" / "trtexec"
    program.parent.mkdir()
    script = Path(__file__).with_name("fake_trtexec.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("FAKE_TRTEXEC_BUILT", str(program.with_name("built")))
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program
