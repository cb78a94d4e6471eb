"""The whole way over a real sshd on loopback, with real SFTP. Everything but machine and trtexec is as on a board."""

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import asyncssh
import pytest
from measure_models import dense_model

import edgesmith
from edgesmith.cli import main
from edgesmith.device.address import Address
from edgesmith.device.plan import DevicePlan
from edgesmith.device.record import load_record
from edgesmith.device.ssh import SshTransport
from edgesmith.device.transport import workspace
from edgesmith.errors import DeviceError
from edgesmith.measure.runner import LatencyPlan

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SFTP = Path("/usr/lib/openssh/sftp-server")

pytestmark = pytest.mark.skipif(
    SSHD is None or not SFTP.exists(), reason="no sshd: apt-get install openssh-server openssh-sftp-server"
)


@pytest.fixture
def tools(tmp_path):
    """The first directory in which programs are looked for behind sshd."""
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


@pytest.fixture
def sshd(home, tmp_path, tools):
    """A server of the present user's own, which listens on loopback and knows one key."""
    folder = tmp_path / "sshd"
    folder.mkdir()
    key = asyncssh.read_private_key(home / ".ssh" / "id_ed25519")
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    host_key.write_private_key(folder / "host_key")
    (folder / "host_key").chmod(0o600)
    (folder / "authorized").write_bytes(key.export_public_key())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nSubsystem sftp {SFTP}\n"
        f"SetEnv PATH={tools}:/usr/bin:/bin\n"
    )
    if os.getuid() == 0:
        # Debian's sshd wants this directory, which its service makes at start.
        Path("/run/sshd").mkdir(exist_ok=True)
    log = (folder / "log").open("wb")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    (home / ".ssh" / "known_hosts").write_bytes(f"[127.0.0.1]:{port} ".encode() + host_key.export_public_key())
    for _ in range(200):
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                break
        if process.poll() is not None:
            pytest.fail((folder / "log").read_text())
        time.sleep(0.05)
    yield port
    process.terminate()
    process.wait(10)
    log.close()


@pytest.fixture
def transport(sshd, device_folder):
    address = Address("ssh", "127.0.0.1", getpass.getuser(), sshd)
    transport = SshTransport(address, str(device_folder), sys.executable)
    yield transport
    transport.close()


def test_an_artifact_is_validated_over_sshd_and_the_device_is_left_clean(sshd, artifact, device_folder, capsys):
    settings = {"seconds": 0, "fewest_runs": 3, "threads": 1, "python": sys.executable, "directory": device_folder}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    on = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}"
    assert main(["validate", str(artifact), "--on", on, *words]) == 0
    assert "tier device" in capsys.readouterr().out
    (run,) = load_record(artifact).runs
    assert run.gaps["logits"].cosine == 1
    assert list(device_folder.iterdir()) == []


def test_a_network_is_compiled_with_the_times_of_a_device_behind_sshd(
    sshd, tmp_path, device_folder, capsys, monkeypatch
):
    monkeypatch.setenv("EDGESMITH_STORE", str(tmp_path / "store"))
    quick = LatencyPlan(warmup_runs=2, min_rounds=2, max_rounds=2)
    monkeypatch.setattr("edgesmith.api.LatencyPlan", lambda: quick)
    settings = {"threads": 1, "python": sys.executable, "directory": device_folder}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    on, source = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}", dense_model(tmp_path / "dense.onnx")
    words += ["--out", str(tmp_path / "out"), "--recipe", "float", "--threads", "1", "--json"]
    assert main(["compile", str(source), "--on", on, *words]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert [row["latency_ms"]["tier"] for row in ledger["rows"]] == ["device"] * 2
    assert ledger["device"]["address"] == on
    assert list(device_folder.iterdir()) == []


MADE_UP_TRTEXEC = """#!/bin/sh
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v00000-fake] # made up"
for word; do
    case "$word" in
        --onnx=*) model=${word#*=} ;;
        --saveEngine=*) cp "$model" "${word#*=}" ;;
        --loadEngine=*) bytes=$(wc -c <"${word#*=}") ;;
        --exportTimes=*) echo "[{\\"computeMs\\": $bytes}]" >"${word#*=}" ;;
    esac
done
"""
"""A trtexec whose engine is the graph, and whose times are its size."""


@pytest.mark.slow
def test_trtexec_alone_decides_what_pays_on_a_board_without_python(sshd, tools, tmp_path, device_folder):
    for name, text in (("trtexec", MADE_UP_TRTEXEC), ("uname", "#!/bin/sh\necho aarch64\n")):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    on = f"ssh://{getpass.getuser()}@127.0.0.1:{sshd}"
    plan = DevicePlan(directory=str(device_folder), python="/nowhere/python3")
    quick = LatencyPlan(warmup_runs=1, min_rounds=2, max_rounds=2)
    settings = edgesmith.Settings(threads=1, store=tmp_path / "store", on=on, device=plan, latency_plan=quick)
    step = {"method": "quantize-weights", "options": {"bits": 8, "block_size": None}}
    source = dense_model(tmp_path / "dense.onnx", width=64)
    recipe = {"version": 1, "keep": "if-pays", "steps": [step]}
    artifact = edgesmith.compile(
        source, out=tmp_path / "out", target="jetson-orin-nano", recipe=recipe, settings=settings
    )
    source_row, step_row, lowered = artifact.ledger.rows
    assert step_row.status == "ok" and step_row.speedup_step.value > 1
    assert source_row.latency_ms.value > step_row.latency_ms.value == lowered.latency_ms.value
    assert step_row.latency_ms.conditions["runtime"] == "trtexec of TensorRT 00000-fake"
    assert artifact.ledger.device["architecture"] == "aarch64" and "python" not in artifact.ledger.device
    assert list(device_folder.iterdir()) == []


def test_sshd_gets_the_words_as_they_are(transport):
    hostile = ["a b", "$(touch pwned)", "'; exit 7; '", "*", ""]
    done = transport.run([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(3)", *hostile])
    assert done.stdout.strip() == repr(hostile)
    assert done.code == 3


def test_sshd_reports_a_killed_process(transport):
    done = transport.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert done.signal_name == "SIGKILL"


def test_a_hanging_command_is_given_up_and_the_directory_removed(transport, device_folder):
    with pytest.raises(DeviceError, match="took longer than 1 s"), workspace(transport) as place:
        place.transport.run(["sleep", "30"], timeout_seconds=1)
    assert list(device_folder.iterdir()) == []


def test_a_user_without_a_key_is_not_admitted(sshd, home):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(home / ".ssh" / "id_ed25519")
    with pytest.raises(DeviceError, match="does not let you in"):
        SshTransport(Address("ssh", "127.0.0.1", getpass.getuser(), sshd), "/tmp", sys.executable)


def test_a_host_with_another_key_is_refused(sshd, home):
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key()
    (home / ".ssh" / "known_hosts").write_bytes(f"[127.0.0.1]:{sshd} ".encode() + other)
    with pytest.raises(DeviceError, match="host key"):
        SshTransport(Address("ssh", "127.0.0.1", getpass.getuser(), sshd), "/tmp", sys.executable)
