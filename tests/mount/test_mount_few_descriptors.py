"""A daemon whose descriptors are used up goes on: what needs one more is refused in a sentence, and only until then."""

import os
import resource

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="the limit of another process is root's to change"),
]

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M", "--swap", "32M")


def test_without_a_descriptor_commands_fail_in_sentences_and_bytes_move(device: Device) -> None:
    pid = device.daemon.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    # Room for one more: what takes two finds none.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 2, before[1]))
    try:
        device.make("a", MIB, fill=7, place="vram")
        code, lines = device.transact("ctl/import", "host /etc/hostname mappable\n")
        assert code == "EMFILE"
        assert "no descriptor left" in lines[0]["error"]
        assert device.command("objects/a/evict", "\n") == "ok"
        assert device.command("objects/a/backup", "\n") == "ok"
        assert device.shell.do("open(path('bo/a'), 'rb').read(3)") == b"\7\7\7"
        assert device.shell.do("open(path('ctl/selfcheck')).read()") == "ok\n"
        assert "EMFILE" in device.shell.do("open(path('error_log')).read()")
        held = len(os.listdir(f"/proc/{pid}/fd"))
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert held <= highest + 2
    assert device.command("ctl/import", "host /etc/hostname mappable\n") == "ok"
