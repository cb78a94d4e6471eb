"""Which texts name a device, and that nothing else reaches a command line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.device.address import Address, parse_address
from edgesmith.device.transport import Finished, command_line
from edgesmith.errors import DeviceError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("local", Address("local")),
        ("ssh://jetson", Address("ssh", "jetson")),
        ("ssh://me@jetson.local:2222", Address("ssh", "jetson.local", "me", 2222)),
        ("ssh://me@[fe80::1]:22", Address("ssh", "fe80::1", "me", 22)),
        ("adb://emulator-5554", Address("adb", "emulator-5554")),
        ("adb://192.168.0.7:5555", Address("adb", "192.168.0.7:5555")),
    ],
)
def test_addresses_are_read_and_written_alike(text, address):
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "jetson", "ssh://", "ssh://me@", "ssh://-oProxyCommand=touch@x", "ssh://me@-v", "ssh://a b", "ssh://me@h:0",
        "ssh://me@h:65536", "ssh://me:password@h", "adb://", "adb://x;reboot", "adb://$(x)", "ftp://h", "LOCAL",
        "ssh://h/../x", "local\n", "adb://serial\n",
    ],
)  # fmt: skip
def test_what_names_no_device_is_refused_with_the_forms_that_do(text):
    with pytest.raises(DeviceError, match="names no device") as caught:
        parse_address(text)
    assert "ssh://user@host" in caught.value.expected


@given(st.text())
def test_no_text_crashes_the_parser_or_smuggles_a_sign_into_an_address(text):
    try:
        address = parse_address(text)
    except DeviceError:
        return
    assert not set(address.host + address.user) & set(" ;&|$`'\"\\\n<>()*?/@")
    assert not (address.host + address.user).startswith("-")


@given(st.lists(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"])), min_size=1, max_size=4))
def test_a_shell_reads_exactly_the_words_that_were_given(words):
    import subprocess

    line = command_line(["printf", "%s\\0", *words])
    shown = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True).stdout
    assert shown.decode().split("\0")[:-1] == words


@pytest.mark.parametrize(
    ("code", "name"), [(-9, "SIGKILL"), (137, "SIGKILL"), (142, "SIGALRM"), (0, ""), (1, ""), (127, "")]
)
def test_the_signal_that_ended_a_command_is_told_from_an_exit_code(code, name):
    assert Finished(code, "", "").signal_name == name
