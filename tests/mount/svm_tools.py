"""What the tests of address spaces share: a space that is mapped, its commands, its letters, its counters."""

from typing import Any

from tests.mount.mount_harness import MIB, Client, Device

MOUNT_OPTIONS = ("--vram", "16M", "--gtt", "64M", "--memory", "128M", "--fault-timeout", "20")
HEAP = "svm_objects/heap"
SIZE = 64 * MIB


def map_space(device: Device) -> Client:
    """A new space of 64 MiB, and a process that maps it."""
    device.shell.do(f"make('svm/heap', {SIZE})")
    mapper = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}, advice=mmap.MADV_NORMAL)")
    device.control("svm_log")
    return mapper


def command(device: Device, name: str, text: str, code: str = "ok", timeout: float = 20.0) -> dict[str, Any]:
    """Give a command; its result, after a look at its errno."""
    got, lines = device.transact(f"{HEAP}/{name}", text, timeout)
    assert got == code, (text, lines)
    return lines[-1]


def gpu(device: Device, text: str, code: str = "ok") -> dict[str, Any]:
    """Have the device do something."""
    return command(device, "gpu_read" if text.startswith(("read", "checksum")) else "gpu", text, code)


def log(device: Device, what: str) -> list[tuple[int, int]]:
    """(offset, bytes) of what was asked for since the log was last read; the rest is dropped."""
    return [(offset, size) for kind, _, offset, size in device.control("svm_log") if kind == what]


def snapshot(device: Device, first: int, size: int) -> str:
    """The letters of some pages, given as bytes, each letter once."""
    text = device.shell.do(f"os.pread(opened('{HEAP}/snapshot', os.O_RDONLY), {size >> 12}, {first >> 12})").decode()
    assert len(text) == size >> 12
    return "".join(sorted(set(text)))


def svm(device: Device, key: str) -> int:
    """One of the counters of stats."""
    value: int = device.stats()["svm"][key]
    return value


def vram(device: Device) -> tuple[int, int]:
    """(bytes used, BOs) there."""
    region = device.stats()["regions"]["vram"]
    return region["used"], region["bos"]
