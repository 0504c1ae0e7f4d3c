"""Hazards of FUSE (H1 to H31) that a mounted device can show; those of the plumbing alone are shown with toy servers.

Where a rule can be taken out, a second test shows that the first is able to fail.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, PATIENCE, Client, Device, children
from tests.mount.svm_tools import gpu
from ttmfs.fs.requests.inode import InodeRequests
from ttmfs.fs.requests.list import ListRequests
from ttmfs.fs.requests.name import NameRequests
from ttmfs.fs.requests.open import OpenRequests
from ttmfs.fs.requests.operations import requests_of
from ttmfs.fs.requests.read_write import DataRequests

pytestmark = pytest.mark.mount

SIZE = 4 * MIB
SMALL = ("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "60", "--watchdog", "0")

PARK_READERS = """
def park(number):
    fd = opened('bo/{name}')
    try:
        os.pread(fd, 16384, number * 65536)
    except OSError as error:
        failed.append(error.errno)
failed = []
threads = [threading.Thread(target=park, args=(number,), daemon=True) for number in range({count})]
for thread in threads: thread.start()
"""

PARK_SPACE_READERS = PARK_READERS.replace("bo/{name}", "svm/heap").replace("16384, number * 65536", "1, number * 4096")


def _park(device: Device, count: int, name: str = "a") -> Client:
    """`count` readaheads, apart from each other, of a BO whose move waits in a paused engine."""
    device.make(name, count << 16, fill=1, place="vram")
    assert device.command(f"objects/{name}/prefault", "4") == "ok"
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command(f"objects/{name}/validate", "gtt") == "ok"
    client: Client = device.client(PARK_READERS.format(name=name, count=count))
    return client


JOIN = "[thread.join(10) for thread in threads] and failed"
USE_ANOTHER = """
fd = opened('bo/b')
m = mapped(fd, 1 << 20, advice=mmap.MADV_NORMAL)
assert m[0] == 2 and m[900000] == 2
m[5000] = 3
assert os.pread(fd, 1 << 20, 0)[100] == 2
"""


# -- H3, H8: many parked requests --------------------------------------------------------------------------------------


def test_parked_readaheads_of_one_bo_do_not_starve_another(device: Device) -> None:
    device.make("b", MIB, fill=2, place="vram")
    client = _park(device, 24)
    device.until_parked(24)
    other = device.client()
    other.do(USE_ANOTHER, 2)
    assert device.command("objects/b/unmap", "\n", 2) == "ok"
    assert other.do("m[5000]", 2) == 3
    assert device.command("debug/pause_engine", "0") == "ok"
    assert client.do(JOIN) == []


def test_with_the_limits_of_fuse_they_would(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_background_limits",))
    device.make("b", MIB, fill=2, place="vram")
    _park(device, 24)
    device.until_parked(12)
    assert device.client().begin(USE_ANOTHER).waits()
    device.abort()


def test_many_parked_requests_leave_tasks_for_others(device: Device) -> None:
    client = _park(device, 96)
    device.until_parked(96)
    device.shell.do("[os.stat(path('bo/a')), os.listdir(path('objects')), slurp('stats')] and None", 2)
    assert device.command("debug/pause_engine", "0") == "ok"
    assert client.do(JOIN) == []


def test_with_few_tasks_they_would_not(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("max_tasks=64", "without_hurry"))
    _park(device, 96)
    device.until_parked(64)
    assert device.client().begin("slurp('stats')").waits()
    device.abort()


def test_when_half_of_the_tasks_wait_the_oldest_goes_on(mounted: Callable[..., Device]) -> None:
    """Its bytes are where the move has not taken them away from yet."""
    device = mounted(*SMALL, patches=("max_tasks=64",))
    client = _park(device, 96)
    device.until_parked(32)
    for _ in range(3):
        device.shell.do("[os.stat(path('bo/a')), os.listdir(path('objects')), slurp('stats')] and None", 5)
    assert device.command("debug/pause_engine", "0") == "ok"
    assert client.do(JOIN) == []


@pytest.mark.parametrize("spaces", [96, 1])
def test_requests_of_spaces_are_hurried_too_and_keep_none_of_a_bo_from_it(
    mounted: Callable[..., Device], spaces: int
) -> None:
    device = mounted(*SMALL, patches=("max_tasks=64",))
    device.shell.do(f"make('svm/heap', {2 * MIB})")
    gpu(device, "fill 0 2M 7")
    device.make("a", 96 << 16, fill=1, place="vram")
    assert device.command("objects/a/prefault", "4") == "ok"
    assert device.command("debug/pause_engine", "1") == "ok"
    readers = [device.client(PARK_SPACE_READERS.format(count=spaces))]
    device.until_parked(min(spaces, 32))
    assert device.command("objects/a/validate", "gtt") == "ok"
    readers.append(device.client(PARK_READERS.format(name="a", count=96 - spaces)))
    device.until_parked(32)
    for _ in range(3):
        device.shell.do("[os.listdir(path('objects')), slurp('stats')] and None", 5)
    assert device.command("debug/pause_engine", "0") == "ok"
    assert [client.do(JOIN) for client in readers] == [[], []]


# -- H20: exceptions of every kind -------------------------------------------------------------------------------------

EXCEPTIONS = [
    "ValueError",
    "MemoryError",
    "OSError",
    "AssertionError",
    "ExceptionGroup",
    "BaseExceptionGroup",
    "RecursionError",
    "StopAsyncIteration",
]

USES = {
    "read": "os.pread(fd, 1 << 16, 1 << 16)",
    "write": "os.pwrite(fd, b'x' * 4096, 0)",
    "lookup": "os.stat(path('bo/unknown'))",
    "getattr": "os.fstat(opened('stats', os.O_RDONLY))",
    "setattr": "os.chmod(path('bo/a'), 0o600)",
    "create": "opened('bo/new', os.O_CREAT | os.O_RDWR)",
    "mknod": "os.mknod(path('bo/node'), 0o100644)",
    "mkdir": "os.mkdir(path('bo/folder'))",
    "unlink": "os.unlink(path('bo/a'))",
    "rmdir": "os.rmdir(path('bo/there'))",
    "rename": "os.rename(path('bo/a'), path('bo/c'))",
    "open": "opened('bo/a')",
    "opendir": "os.listdir(path('bo'))",
    "readdir": "os.listdir(path('bo'))",
    "statfs": "os.statvfs(path('bo'))",
    "_status_value": "os.getxattr(path('bo/a'), 'user.ttm.size')",
    "listxattr": "os.listxattr(path('bo/a'))",
    "setxattr": "os.setxattr(path('bo/a'), 'user.ttm.priority', b'2')",
    "removexattr": "os.removexattr(path('bo/a'), 'user.ttm.priority')",
    "fsync": "os.fsync(fd)",
}


@pytest.mark.parametrize("exception", EXCEPTIONS)
def test_whatever_a_handler_raises_is_eio_and_counted_and_the_daemon_lives(device: Device, exception: str) -> None:
    device.allowed.append("made to fail|AssertionError")
    device.make("a", SIZE)
    client = device.client("os.mkdir(path('bo/there')); fd = opened('bo/a')")
    for handler, use in USES.items():
        before = device.stats()["requests"]["handler_errors"]
        device.control("fail_handler", handler=handler, exception=exception)
        assert client.errno(use, 5) == "EIO", handler
        device.control("restore_handlers")
        assert device.stats()["requests"]["handler_errors"] > before, handler
        assert device.alive
    # Those whose answer nobody sees.
    for handler, use in {"flush": "os.close(opened('bo/a'))", "forget": "None", "release": "None"}.items():
        device.control("fail_handler", handler=handler, exception=exception)
        client.errno(use, 5)
        device.control("restore_handlers")
    assert client.do("os.pread(fd, 4, 0)") == bytes(4)
    assert "Traceback" in device.log()


def test_every_handler_is_wrapped() -> None:
    parts = (InodeRequests, OpenRequests, NameRequests, ListRequests, DataRequests)
    handlers = {name: handler for part in parts for name, handler in requests_of(part).items()}
    assert {"read", "write", "open", "setattr"} <= handlers.keys()
    bare = {name for name, handler in handlers.items() if not hasattr(handler, "__wrapped__")}
    assert bare == {"read", "write", "getxattr"}, "these do it by themselves, for speed"


def test_without_the_wrapper_the_mount_is_gone(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_guard",))
    device.allowed.append("made to fail")
    with contextlib.suppress(OSError, EOFError):
        device.shell.do("os.statvfs(path('bo'))", 10)
    assert device.daemon.popen.wait(10) != 0


# -- H5, H25: lengths and times ----------------------------------------------------------------------------------------

EVERY_LENGTH = """
sizes = []
for size in (0, 1, 4095, 4096, 4097, 131071, 131073, 1048575, 1048577):
    name = 'bo/len%d' % size
    data = bytes(i * 7 & 255 for i in range(size))
    fd = opened(name, os.O_CREAT | os.O_RDWR); os.pwrite(fd, data, 0) if size else None; os.close(fd)
    command('objects/len%d/unmap' % size, '\\n')
    fd = opened(name)
    for offset in (0, 1, 4095, 4096, size - 1, size, size + 5000):
        for count in (1, 4096, 4097, 1 << 21):
            if offset >= 0 and os.pread(fd, count, offset) != data[offset:offset + count]:
                sizes.append(('pread', size, offset, count))
    command('objects/len%d/unmap' % size, '\\n')
    if size:
        m = mapped(fd, size, advice=mmap.MADV_NORMAL)
        if bytes(m[:]) != data: sizes.append(('mmap', size))
    if os.fstat(fd).st_size != size: sizes.append(('fstat', size, os.fstat(fd).st_size))
    os.close(fd)
"""


def test_reads_have_their_exact_length_at_every_size(device: Device) -> None:
    client = device.client(EVERY_LENGTH)
    assert client.do("sizes") == []


def test_a_short_read_would_be_seen(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("short_reads",))
    client = device.client()
    try:
        client.do(EVERY_LENGTH)
    except EOFError:
        assert client.died() == -signal.SIGBUS
    else:
        assert client.do("sizes") != []


WRITE_AND_STAT = """
fd = opened('bo/a')
before = os.fstat(fd).st_mtime_ns
for number in range(20):
    os.pread(fd, 1 << 20, 0); os.pwrite(fd, b'x' * 100, number * 4096); os.fstat(fd); os.stat(path('bo/a'))
unmoved = os.fstat(fd).st_mtime_ns == before
"""


def test_writing_and_looking_at_the_time_keeps_the_cache(device: Device) -> None:
    device.make("a", MIB, fill=1)
    before = device.stats()["requests"]["read"]
    client = device.client(WRITE_AND_STAT)
    assert client.do("unmoved") is True
    assert device.stats()["requests"]["read"] - before <= 8
    client.do("time.sleep(0.01); os.close(fd)")
    assert client.do("os.stat(path('bo/a')).st_mtime_ns > before") is True


def test_a_moving_mtime_would_drop_it(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("moving_mtime",))
    device.make("a", MIB, fill=1)
    before = device.stats()["requests"]["read"]
    assert device.client(WRITE_AND_STAT).do("unmoved") is False
    assert device.stats()["requests"]["read"] - before > 12


# -- INVAL really unmaps -----------------------------------------------------------------------------------------------

TOUCH = "fd = opened('bo/a'); m = mapped(fd, 1 << 20); total = sum(m[n * 4096] for n in range(256))"


def _touched_again(device: Device) -> tuple[int, int]:
    """(INVALs, faults of `a`) that a validate and touching every page again bring about."""
    device.make("a", MIB, fill=1, place="vram")
    client = device.client(TOUCH)
    invals, faults = device.stats()["requests"]["invals"], device.status("a")["faults"]
    assert device.command("objects/a/validate", "gtt") == "ok"
    assert device.command("objects/a/wait", "kernel 5") == "ok"
    assert client.do("sum(m[n * 4096] for n in range(256))") == 256
    return device.stats()["requests"]["invals"] - invals, device.status("a")["faults"] - faults


def test_after_a_validate_every_touch_of_a_mapped_client_faults_anew(device: Device) -> None:
    invals, faults = _touched_again(device)
    assert invals == 1
    assert faults == 256


def test_a_move_without_an_inval_would_be_seen(mounted: Callable[..., Device]) -> None:
    device = mounted(*SMALL, patches=("without_inval",))
    invals, faults = _touched_again(device)
    assert (invals, faults) == (0, 0)


def test_a_validate_that_moves_nothing_unmaps_nothing(device: Device) -> None:
    device.make("a", MIB, fill=1, place="vram")
    client = device.client(TOUCH)
    faults = device.status("a")["faults"]
    assert device.command("objects/a/validate", "vram gtt") == "ok"
    assert client.do("sum(m[n * 4096] for n in range(256))") == 256
    assert device.status("a")["faults"] == faults


def test_an_inval_of_an_inode_that_nobody_knows_is_no_error(device: Device) -> None:
    assert device.control("inval", ino=(1 << 59) + 5) is False
    device.make("a", MIB, fill=1, place="vram")
    assert device.command("objects/a/validate", "gtt") == "ok"


# -- H7, H19, H22, H23: the end ----------------------------------------------------------------------------------------


def _waiters(device: Device) -> list[Client]:
    """Parked faults, a parked WRITE and two waiting commands."""
    device.make("a", SIZE, fill=1, place="vram")
    device.make("b", SIZE)
    clients = [device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20)") for _ in range(3)]
    writer = device.client("fd = opened('bo/b')")
    assert device.command("debug/pause_engine", "1") == "ok"
    assert device.command("objects/a/validate", "gtt") == "ok"
    # b has no content: its space is cleared by an engine, and a WRITE can go nowhere before that.
    assert device.command("objects/b/validate", "vram") == "ok"
    for number, client in enumerate(clients):
        client.begin(f"m[{number} * 400000]")
    writer.begin("os.pwrite(fd, b'x' * 10, 5)")
    device.until_parked(4)
    # A WRITE to a is answered, so that clients may have dirty pages of it: the end has something to write back.
    assert device.shell.do("os.pwrite(opened('bo/a'), b'W' * 10, 40 * 4096 + 7)") == 10
    commands = [device.begin_command(f"objects/{name}/wait", "kernel 50") for name in "ab"]
    assert all(client.waits(0.1) for client in commands)
    return [*clients, writer, *commands]


def _all_end(clients: list[Client], seconds: float) -> None:
    """Each client got an answer, an error or SIGBUS."""
    end = time.monotonic() + seconds
    for client in clients:
        with contextlib.suppress(OSError, EOFError):
            client.result(max(0.1, end - time.monotonic()))


def test_sigterm_with_waiters_ends_the_daemon_and_hangs_no_client(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "60")
    device.allowed.append("fuse_reply")
    clients = _waiters(device)
    device.daemon.popen.send_signal(signal.SIGTERM)
    _all_end(clients, 5)
    device.end_clients()
    assert device.daemon.popen.wait(5 * PATIENCE) == 0


def test_a_forced_umount_with_waiters_ends_the_daemon_and_hangs_no_client(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "60")
    device.allowed.append("fuse_reply")
    clients = _waiters(device)
    Path(f"/sys/fs/fuse/connections/{device.connection}/abort").write_text("1")
    _all_end(clients, 5)
    device.end_clients()
    device.daemon.popen.wait(5 * PATIENCE)


def test_a_wedged_daemon_is_freed_by_its_watchdog(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "32M", "--gtt", "64M", "--memory", "128M", "--watchdog", "2")
    device.make("a", SIZE, fill=1)
    client = device.client("fd = opened('bo/a'); m = mapped(fd, 4 << 20)")
    device.control("wedge")
    client.begin("os.pread(fd, 4096, 40960)")
    _all_end([client], 8)
    device.end_clients()


def test_no_child_of_the_daemon_holds_the_session(device: Device) -> None:
    """Or the end of the daemon would not end the connection."""
    device.make("a", MIB, fill=1, place="vram")
    offspring = children(device.daemon.pid)
    assert offspring, "the watchdog is a child"
    for pid in offspring:
        links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        assert "/dev/fuse" not in links


def test_what_a_write_has_moved_half_way_goes_back_and_the_write_is_answered(mounted: Callable[..., Device]) -> None:
    """H30, R2: the way back out of a hop is part of the fault as well, and must not unmap the page that is written."""
    device = mounted("--vram", "8M", "--gtt", "8M", "--memory", "32M", "--placement", "vram", "--fault-timeout", "5")
    shell = device.shell
    shell.do("fd = opened('bo/a', os.O_CREAT | os.O_RDWR); os.ftruncate(fd, 16384); os.close(fd)")
    assert device.command("objects/a/restore", "\n") == "ok"
    shell.do("os.truncate(path('bo/a'), 32768)")
    shell.do("fd = opened('bo/a', os.O_RDONLY); os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)")
    assert shell.do("os.pread(fd, 4096, 0)") == bytes(4096)
    # Who opens it to write has it unmapped. What is read meanwhile counts as cached, and the BO is not placed yet.
    device.hold("inval", bo="a")
    client = device.client().begin("fd = opened('bo/a', os.O_WRONLY)")
    device.until_held("inval")
    assert shell.do("os.pread(fd, 4096, 4096)") == bytes(4096)
    device.release("inval")
    client.result()
    for key, value in (("interval", "3"), ("times", "1"), ("probability", "100")):
        assert device.command(f"debug/fail_move/{key}", value) == "ok"
    # To vram, which needs a hop; the hop; to vram, which fails. A folio that is written in part stays locked meanwhile.
    assert client.do("os.pwrite(fd, b'x' * 10, 24576)", 10) == 10
    assert device.shell.do("slurp('debug/fail_move/times')") == "0\n"
    assert device.status("a")["mem_type"] == "system"
    assert shell.do("open(path('bo/a'), 'rb').read()") == bytes(24576) + b"x" * 10 + bytes(8182)
