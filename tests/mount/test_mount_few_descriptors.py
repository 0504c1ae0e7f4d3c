"""A daemon whose descriptors are used up goes on: what needs one more is refused in a sentence, and only until then."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="the limit of another process is root's to change"),
]

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "32M", "--memory", "64M", "--swap", "32M")


@contextlib.contextmanager
def descriptors(device: Device, free: int) -> Iterator[int]:
    """The daemon can open so many more, whatever it closes meanwhile: says the highest that it may have."""
    pid = device.daemon.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1 + free, before[1]))
    try:
        yield highest
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_the_daemon_lives_on_where_not_one_is_left(mounted: Callable[..., Device]) -> None:
    """Who waits in trace_pipe is looked at all the while, and so are processes that have BOs or are of a group."""
    device = mounted(*MOUNT_OPTIONS)
    member = device.client()
    device.shell.do("os.mkdir(path('groups/a'))")
    assert device.command("groups/a/cgroup.procs", str(member.pid)) == "ok"
    member.do("make('bo/mine', 4096, 1)")
    device.make("a", MIB, fill=7)
    # Nothing comes of it: there is no address space.
    assert device.command("ctl/trace", "svm_migrate") == "ok"
    reader = device.client("fd = opened('trace_pipe', os.O_RDONLY)").begin("os.read(fd, 65536)")
    with descriptors(device, 0):
        assert reader.waits(2.5)
        for command in ("evict", "backup", "restore", "unmap"):
            assert device.command(f"objects/a/{command}", "\n") == "ok"
        assert device.shell.do("os.listdir(path('clients'))").count(str(member.pid)) == 1
        assert device.command("groups/a/cgroup.procs", str(member.pid)) == "EMFILE", "it is there, it cannot be seen"
        assert device.shell.do("open(path('bo/a'), 'rb').read(3)") == b"\7\7\7"
        assert device.shell.do("open(path('ctl/selfcheck')).read()") == "ok\n"
    assert str(member.pid) in device.shell.do("open(path('groups/a/cgroup.procs')).read()").split()
    assert str(member.pid) in device.shell.do("os.listdir(path('clients'))")
    assert device.suspicious() == []


def test_without_a_descriptor_commands_fail_in_sentences_and_bytes_move(device: Device) -> None:
    # Room for one more: what takes two finds none.
    with descriptors(device, 1) as highest:
        device.make("a", MIB, fill=7, place="vram")
        code, lines = device.transact("ctl/import", "host /etc/hostname mappable\n")
        assert code == "EMFILE"
        assert "no descriptor left" in lines[0]["error"]
        assert device.command("objects/a/evict", "\n") == "ok"
        assert device.command("objects/a/backup", "\n") == "ok"
        assert device.shell.do("open(path('bo/a'), 'rb').read(3)") == b"\7\7\7"
        assert device.shell.do("open(path('ctl/selfcheck')).read()") == "ok\n"
        assert "EMFILE" in device.shell.do("open(path('error_log')).read()")
        held = len(os.listdir(f"/proc/{device.daemon.pid}/fd"))
    assert held <= highest + 2
    assert device.command("ctl/import", "host /etc/hostname mappable\n") == "ok"
