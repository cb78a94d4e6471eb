"""The SSH transport against a server in this process: real protocol, real shell, real files."""

import sys
from contextlib import closing

import asyncssh
import pytest
from device_fixtures import LoopbackSshServer

from edgesmith.device.address import Address
from edgesmith.device.ssh import SshTransport
from edgesmith.device.transport import workspace
from edgesmith.errors import ConnectionLostError, DeviceError


def connect(server, **changes) -> SshTransport:
    place = {"kind": "ssh", "host": "127.0.0.1", "user": "tester", "port": server.port, **changes}
    return SshTransport(Address(**place), "/tmp", sys.executable)


def test_a_command_runs_with_its_words_as_they_are_and_its_end_is_reported(ssh):
    hostile = ["a b", "$(touch pwned)", "'; exit 7; '", "*", ""]
    program = "import sys; print(sys.argv[1:]); print('bad', file=sys.stderr); sys.exit(3)"
    done = ssh.run([sys.executable, "-c", program, *hostile])
    assert done.stdout.strip() == repr(hostile)
    assert done.stderr.strip() == "bad"
    assert done.code == 3


def test_files_travel_both_ways_byte_for_byte(ssh, tmp_path, device_folder):
    content = bytes(range(256)) * 1000
    (tmp_path / "up").write_bytes(content)
    ssh.push(tmp_path / "up", f"{device_folder}/file of 'mine'")
    ssh.pull(f"{device_folder}/file of 'mine'", tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == content


def test_a_server_without_sftp_is_told_from_a_lost_connection(home, tmp_path):
    key = asyncssh.read_private_key(home / ".ssh" / "id_ed25519")
    server = LoopbackSshServer(key, sftp=False)
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts_line())
    (tmp_path / "up").write_bytes(b"content")
    with closing(connect(server)) as transport, pytest.raises(DeviceError, match="offers no SFTP") as caught:
        transport.push(tmp_path / "up", str(tmp_path / "there"))
    server.close()
    assert not isinstance(caught.value, ConnectionLostError)
    assert "Subsystem sftp" in caught.value.fix


def test_a_missing_file_is_named(ssh, tmp_path, device_folder):
    with pytest.raises(DeviceError, match="could not be copied") as caught:
        ssh.pull(f"{device_folder}/nothing", tmp_path / "down")
    assert "nothing" in caught.value.what


def test_a_killed_process_is_told_from_one_that_failed(ssh):
    done = ssh.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert done.signal_name == "SIGKILL"


def test_a_command_that_hangs_is_given_up_after_its_time(ssh):
    with pytest.raises(DeviceError, match=r"took longer than 0\.5 s"):
        ssh.run(["sleep", "60"], timeout_seconds=0.5)
    assert ssh.run(["true"]).code == 0


def test_a_host_whose_key_nobody_confirmed_is_refused_before_anything_is_sent(server, home):
    (home / ".ssh" / "known_hosts").unlink()
    with pytest.raises(DeviceError, match=r"host key .* is not among the known hosts") as caught:
        connect(server)
    assert f"ssh -p {server.port} tester@127.0.0.1" in caught.value.fix
    assert server.commands == []


def test_a_host_with_another_key_than_before_is_refused(server, home):
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(DeviceError, match=r"WARNING: the host key .* is another than the known one") as caught:
        connect(server)
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in caught.value.fix


def test_no_configuration_switches_the_check_of_host_keys_off(server, home):
    (home / ".ssh" / "known_hosts").unlink()
    (home / ".ssh" / "config").write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    with pytest.raises(DeviceError, match="host key"):
        connect(server)


def test_a_user_whose_key_is_not_accepted_learns_what_to_do(server, home):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(home / ".ssh" / "id_ed25519")
    with pytest.raises(DeviceError, match="does not let you in") as caught:
        connect(server)
    assert "ssh-copy-id" in caught.value.fix


def test_a_machine_that_does_not_listen_is_named(server):
    port = server.port
    server.close()
    with pytest.raises(DeviceError, match="cannot be reached") as caught:
        connect(server, port=port)
    assert str(port) in caught.value.what


def abort(line: str, process: asyncssh.SSHServerProcess) -> None:
    process.channel.get_connection().abort()


def test_a_lost_connection_is_an_error_and_the_device_is_clean_after_connecting_again(server, ssh, device_folder):
    server.on_command = lambda line, process: abort(line, process) is None if "sleep" in line else False
    with pytest.raises(DeviceError, match="was lost") as caught, workspace(ssh) as place:
        assert list(device_folder.iterdir()) != []
        place.transport.run(["sleep", "60"])
    assert list(device_folder.iterdir()) == []
    assert "remove" not in caught.value.fix


def test_a_device_that_stays_away_is_reported_with_the_directory_that_is_left(
    server: LoopbackSshServer, ssh, device_folder
):
    with pytest.raises(DeviceError, match="was lost") as caught, workspace(ssh) as place:
        server.on_command = lambda line, process: abort(line, process) is None
        place.transport.run(["true"])
    assert place.directory in caught.value.fix
    assert [f"{device_folder}/{left.name}" for left in device_folder.iterdir()] == [place.directory]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_directory_is_removed_whatever_ends_the_work(ssh, device_folder, error):
    with pytest.raises(error), workspace(ssh):
        assert len(list(device_folder.iterdir())) == 1
        raise error
    assert list(device_folder.iterdir()) == []


def test_the_directory_stays_when_asked_and_says_where(ssh, device_folder):
    with workspace(ssh, keep=True) as place:
        pass
    assert [str(left) for left in device_folder.iterdir()] == [place.directory]
    assert place.directory in place.remarks[0]


def test_an_answer_that_is_not_the_directory_asked_for_is_never_removed(ssh, server, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()

    def lie(line: str, process: asyncssh.SSHServerProcess) -> bool:
        if not line.startswith("mktemp"):
            return False
        process.stdout.write(f"{precious}\n")
        process.exit(0)
        return True

    server.on_command = lie
    with pytest.raises(DeviceError, match="No working directory"), workspace(ssh):
        pass
    assert precious.is_dir()
    assert not any(line.startswith("rm") for line in server.commands)


def test_a_full_disk_is_found_before_a_file_is_copied(ssh, server, tmp_path, device_folder):
    def almost_full(line: str, process: asyncssh.SSHServerProcess) -> bool:
        if not line.startswith("df"):
            return False
        process.stdout.write("Filesystem 1024-blocks Used Available Capacity Mounted on\nmade-up 9 8 1 99% /\n")
        process.exit(0)
        return True

    (tmp_path / "large").write_bytes(bytes(2000))
    server.on_command = almost_full
    with pytest.raises(DeviceError, match="MB free") as caught, workspace(ssh) as place:
        place.push(tmp_path / "large", "large")
    assert "--set directory=" in caught.value.fix
    assert list(device_folder.iterdir()) == []


@pytest.mark.parametrize("base", ["/proc/nowhere", "relative", "-rf", ""])
def test_a_directory_that_cannot_be_written_is_named(server, base):
    transport = connect(server)
    transport.base = base
    with pytest.raises(DeviceError, match=f"No working directory can be made in {base}"), workspace(transport):
        pass
    transport.close()
