"""Files as programs write them: pages of 2 MiB for all of them, and no memory held beyond the last close."""

from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Device

pytestmark = pytest.mark.mount

MOUNT_OPTIONS = ("--vram", "8M", "--gtt", "32M", "--memory", "128M", "--swap", "0")
SIZE = 8 * MIB

WRITERS = {
    "cp": "subprocess.run(['cp', source, target], check=True)",
    "dd bs=4k": "subprocess.run(['dd', 'if=' + source, 'of=' + target, 'bs=4k', 'status=none'], check=True)",
    "cat": "subprocess.run(f'cat {source} > {quoted}', shell=True, check=True)",
    "append": "subprocess.run(f'for n in 0 1 2 3; do dd if={source} bs=64k skip=$((n * 32)) count=32 status=none"
    " >> {quoted}; done', shell=True, check=True)",
    "tar": "subprocess.run(f'tar -C {folder} -cf - a | tar -C {folder_of} -xf -', shell=True, check=True)",
    "10 KB": "copy(10_000)",
    "mmap": "touch(range(0, 8 << 20, 4096))",
    "mmap at random": "touch(random.Random(1).sample(range(0, 8 << 20, 4096), 2048))",
}
PREPARE = """
import os, random, shlex, subprocess, tempfile
folder = tempfile.mkdtemp(); source = folder + '/a'; target = os.fsdecode(path('bo/a')); quoted = shlex.quote(target)
folder_of = shlex.quote(os.path.dirname(target))
data = random.Random(7).randbytes(8 << 20)
with open(source, 'wb') as file: file.write(data)
def copy(step):
    with open(target, 'wb', buffering=0) as file:
        for at in range(0, len(data), step): file.write(data[at:at + step])
def touch(order):
    fd = os.open(target, os.O_CREAT | os.O_RDWR); os.ftruncate(fd, len(data))
    m = mapped(fd, len(data))
    for at in order: m[at:at + 4096] = data[at:at + 4096]
    m.close(); os.close(fd)
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_ordinary_writers_get_pages_of_2_mib(device: Device, writer: str) -> None:
    """At once, or marked and mended by the worker a moment later."""
    client = device.client(PREPARE)
    try:
        stats = device.stats()
        before, moved = stats["pool"]["in_use_pages"], stats["defrag"]["moved"]
        client.do(WRITERS[writer], 30)
        device.until(lambda: device.status("a")["page_orders"].get("9") == 4, 20)
        if not writer.startswith("mmap"):
            assert device.stats()["defrag"]["moved"] == moved, "as they came"
        # The source of a copy, and the block of a writer, go a moment after.
        device.until(lambda: device.stats()["pool"]["in_use_pages"] - before == SIZE // 4096)
        assert client.do("open(target, 'rb').read() == data", 20)
        assert device.control("selfcheck") == []
    finally:
        client.do("import shutil; shutil.rmtree(folder)")


def test_the_block_goes_back_when_the_last_writer_closes(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    client = device.client("fd = opened('bo/a', os.O_CREAT | os.O_RDWR); os.pwrite(fd, b'x' * (3 << 20), 0)")
    other = device.client("fd = opened('bo/a', os.O_RDWR)")

    def in_use() -> int:
        pages: int = device.stats()["pool"]["in_use_pages"]
        return pages

    assert in_use() == 1024
    client.do("os.close(fd)")
    assert in_use() == 1024, "another one may write on"
    other.do("os.close(fd)")
    device.until(lambda: in_use() == 768, 10)
    assert device.control("selfcheck") == []
