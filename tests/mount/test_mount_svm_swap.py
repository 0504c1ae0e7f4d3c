"""An address space of twice the memory, through a mount: clients and the device write and read it, every byte."""

import zlib

import pytest

from tests.mount.mount_harness import MIB, Device
from tests.mount.svm_tools import command, gpu, snapshot, svm

pytestmark = pytest.mark.mount
MOUNT_OPTIONS = ("--memory", "32M", "--vram", "8M", "--gtt", "32M", "--swap", "128M", "--fault-timeout", "20")
SIZE = 64 * MIB
STEPS = f"range(0, {SIZE}, 1 << 20)"


def page_of(number: int) -> bytes:
    return (number * 2654435761 % (1 << 32)).to_bytes(4, "little") * 1024


CONTENT = f"b''.join((at * 2654435761 % (1 << 32)).to_bytes(4, 'little') * 1024 for at in range({SIZE} >> 12))"
SAME = f"all(direct(fd, at, 1 << 20) == data[at : at + (1 << 20)] for at in {STEPS})"


def test_a_space_of_twice_memory_is_written_and_read_by_clients_and_device(device: Device) -> None:
    device.shell.do(f"make('svm/heap', {SIZE})")
    client = device.client()
    client.do(f"data = {CONTENT}; fd = opened('svm/heap', os.O_RDWR | os.O_DIRECT); cached = opened('svm/heap')", 60)
    client.do(f"[os.pwrite(cached, data[at : at + (1 << 20)], at) for at in {STEPS}]", timeout=60)
    assert svm(device, "backed_up_pages") >= SIZE // 2 >> 12
    assert snapshot(device, 0, SIZE) == "bs"
    assert client.do(SAME, timeout=60)
    wanted = zlib.crc32(b"".join(page_of(number) for number in range(SIZE >> 12)))
    assert command(device, "gpu_read", f"checksum 0 {SIZE}", timeout=60)["value"] == wanted
    gpu(device, "fill 8M 4K 9")
    mapper = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}, advice=mmap.MADV_NORMAL)")
    assert mapper.do("[m[8 << 20], m[(8 << 20) + 4095]]") == [9, 9]
    mapper.do(f"m[8 << 20 : (8 << 20) + 4096] = {page_of(2048)!r}")
    result = command(device, "backup", "\n", timeout=60)
    assert result["populated_pages"] == 0, result
    assert snapshot(device, 0, SIZE) == "b"
    assert client.do(SAME, timeout=60)
    assert "memory does not hold all" in command(device, "restore", "\n", "ENOMEM", timeout=60)["error"]
    assert device.control("selfcheck") == []
    mapper.do("m.close(); os.close(fd)")
    client.do("os.close(fd); os.close(cached); os.unlink(path('svm/heap'))")
    device.until(
        lambda: device.stats()["pool"]["in_use_pages"] == 0 and device.stats()["swap"]["pages"] == 0,
        why="everything is given back",
    )
    assert device.control("selfcheck") == []
