"""A daemon that gets no more threads (ulimit -u, TasksMax=, pids.max): what needs one says so, no byte goes stale."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount
SIZES = ("--vram", "8M", "--gtt", "16M", "--memory", "32M", "--swap", "32M")


@contextmanager
def none_left(path: Path) -> Iterator[None]:
    path.touch()
    try:
        yield
    finally:
        path.unlink()


def test_moves_and_texts_go_on_and_what_needs_a_thread_is_eagain(
    mounted: Callable[..., Device], tmp_path: Path
) -> None:
    none = tmp_path / "none"
    device = mounted(*SIZES, patches=(f"no_threads_while={none}",))
    shell = device.shell
    device.make("x", 3 * MIB, 7)
    shell.do(f"fd = opened('bo/x'); m = mapped(fd, {3 * MIB}); m[0:3] = b'new'")
    shell.do("space = opened('svm/s', os.O_CREAT | os.O_RDWR)")
    shell.do("os.pwrite(space, b'c' * 65536, 0)")
    with none_left(none):
        assert device.command("objects/x/validate", "vram") == "ok"
        assert device.command("ctl/submit", "fill dst=x value=9 bytes=2 wait") == "ok"
        assert shell.do("m[0:4]") == b"\x09\x09w\x07", "its page was invalidated before and after"
        for name in ("unmap", "evict", "backup"):
            assert device.command(f"objects/x/{name}", "\n") == "ok"
        assert device.command("svm_objects/s/gpu", "fill 0 65536 3") == "ok"
        assert shell.do("os.pread(space, 2, 65534)") == b"\3\3"
        assert device.command("ctl/submit", "checksum src=x wait") == "EAGAIN", "a large job is done in a thread"
        shell.do("m[0:3] = b'two'; os.utime(path('bo/x'), (5, 5))")
        assert shell.do("os.stat(path('bo/x')).st_mtime") == 5
        assert shell.errno("open(path('metrics')).read()") == "EAGAIN"
        shell.do("os.close(fd); os.unlink(path('bo/x'))")
        assert shell.do("m[0:4]") == b"two\x07"
    assert device.command("ctl/submit", "checksum src=x wait") == "ENOENT"
    assert "ttmfs_bos" in shell.do("open(path('metrics')).read()")
    assert shell.do("open(path('ctl/selfcheck')).read()") == "ok\n"
    shell.do("m.close(); os.close(space); os.unlink(path('svm/s'))")
    device.until(lambda: not device.stats()["pool"]["in_use_pages"] and device.stats()["bos"]["count"] == 0, 5)
