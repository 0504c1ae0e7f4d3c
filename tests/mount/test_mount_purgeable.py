"""--purgeable strict through a mount: what programs meet whose memory was taken while they did not need it."""

from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount


def test_a_mapping_process_gets_sigbus_and_the_others_errnos(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "8M", "--memory", "32M", "--purgeable", "strict")
    device.make("tex", MIB, fill=7)
    assert device.command("objects/tex/madvise", "dontneed") == "ok"
    assert device.command("ctl/submit", "checksum src=tex wait") == "EBUSY"
    client = device.client(f"fd = opened('bo/tex'); m = mapped(fd, {MIB}); m[0]")
    assert device.command("ctl/shrink", "all purge") == "ok"
    code, lines = device.transact("objects/tex/madvise", "willneed")
    assert (code, lines[0]["retained"]) == ("ok", False)
    reader = device.client("fd = opened('bo/tex')")
    assert reader.errno("os.pread(fd, 4096, 0)") == "EIO"
    assert reader.errno("os.pwrite(fd, b'x' * 4096, 0)") == "EIO"
    assert device.command("ctl/submit", "checksum src=tex wait") == "EACCES"
    assert device.command("objects/tex/validate", "vram") == "EINVAL"
    assert client.begin("m[0]").died() < 0
    assert reader.do("os.ftruncate(fd, 0), os.pwrite(fd, b'anew', 0), os.pread(fd, 9, 0).decode()") == [None, 4, "anew"]
    assert device.command("objects/tex/validate", "vram") == "ok"
    assert device.control("selfcheck") == []
