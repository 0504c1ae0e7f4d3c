"""objects/NAME/peek and debug/vram through a mount."""

from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, PAGE, Device

pytestmark = pytest.mark.mount


def test_bytes_beyond_the_window_and_in_the_store_are_read_and_written_where_they_are(
    mounted: Callable[..., Device],
) -> None:
    device = mounted("--vram", "8M", "--visible-vram", "1M", "--memory", "32M", "--swap", "16M")
    device.make("far", 4 * MIB, fill=7, place="vram")
    device.make("away", MIB, fill=8)
    assert device.command("objects/away/backup", "\n") == "ok"
    client = device.client(f"fd = opened('bo/far'); m = mapped(fd, {PAGE})")
    before = [(device.status(name)["moves"], device.status(name)["faults"]) for name in ("far", "away")]
    for name, fill in (("far", 7), ("away", 8)):
        look = device.client(f"fd = opened('objects/{name}/peek')")
        assert look.do("len(os.pread(fd, 1 << 20, 0)), list(set(os.pread(fd, 1 << 20, 0)))") == [MIB, [fill]]
        assert look.do("os.pwrite(fd, b'mended', 100), os.pread(fd, 6, 100).decode()") == [6, "mended"]
        assert look.errno(f"os.pwrite(fd, b'past', {4 * MIB - 2 if name == 'far' else MIB - 2})") == "EIO"
    assert [(device.status(name)["moves"], device.status(name)["faults"]) for name in ("far", "away")] == before
    assert device.status("far")["mem_type"] == "vram"
    assert device.status("away")["backed_up_pages"] == 256
    assert client.do("m[98:108].hex()") == (b"\7\7mended\7\7").hex()
    assert device.control("selfcheck") == []


def test_a_store_through_a_mapping_comes_first_and_sees_what_was_written(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "8M", "--memory", "32M")
    device.make("a", MIB, fill=1)
    client = device.client(f"fd = opened('bo/a'); m = mapped(fd, {MIB}); m[0] = 9")
    look = device.client("fd = opened('objects/a/peek')")
    assert look.do("os.pwrite(fd, b'x', 1)") == 1
    assert look.do("os.pread(fd, 3, 0).hex()") == "097801"
    assert client.do("m[:3].hex()") == "097801"


def test_vram_is_read_by_device_address(mounted: Callable[..., Device]) -> None:
    device = mounted("--vram", "8M", "--memory", "32M")
    device.make("a", 2 * MIB, fill=5, place="vram:contiguous@512-1023")
    vram = device.client("fd = opened('debug/vram', os.O_RDONLY)")
    assert vram.do("os.fstat(fd).st_size") == 8 * MIB
    assert vram.do(f"list(set(os.pread(fd, {MIB}, {2 * MIB})))") == [5]
    assert vram.do(f"len(os.pread(fd, {MIB}, {8 * MIB - 3}))") == 3
