"""What is unmapped, refused, unlinked, killed, unplugged and unmounted: errors, and that nothing is left."""

import subprocess
import time
from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Client, Device
from tests.mount.svm_tools import HEAP, MOUNT_OPTIONS, SIZE, command, gpu, log, map_space, snapshot, svm, vram

pytestmark = pytest.mark.mount


@pytest.fixture
def client(device: Device) -> Client:
    """A process that maps a space of 64 MiB."""
    return map_space(device)


# -- unmap -------------------------------------------------------------------------------------------------------------


def test_no_bo_is_left_after_unmap_of_everything(device: Device, client: Client) -> None:
    nothing = vram(device)
    pages = device.stats()["pool"]["in_use_pages"]
    client.do("m[30 << 20] = 1; m.flush()")
    gpu(device, "fill 0 13M 7")
    assert vram(device)[1] > nothing[1]
    command(device, "unmap", f"0 {SIZE}")
    device.until(lambda: vram(device) == nothing, why="vram is as it was")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == pages, why="system pages are as they were")
    assert snapshot(device, 0, SIZE) == "."
    assert svm(device, "ranges") == 0
    assert client.do("[m[0], m[13 << 20], m[30 << 20]]") == [0, 0, 0]


@pytest.mark.parametrize("start", [0, 512 << 10, MIB])
@pytest.mark.parametrize("cached", [False, True])
def test_partial_unmap_of_a_range_in_vram_keeps_the_rest(
    device: Device, client: Client, start: int, cached: bool
) -> None:
    device.shell.do("data = os.urandom(2 << 20); os.pwrite(opened('svm/heap'), data, 4 << 20)")
    command(device, "prefetch", "4M 2M vram")
    if cached:
        client.do("m[4 << 20:6 << 20] and None")
        command(device, "prefetch", "4M 2M vram")
        client.do(f"m[(4 << 20) + {start}] = 1")
        command(device, "prefetch", "4M 2M vram")
        device.shell.do(f"data = data[:{start}] + b'\\1' + data[{start} + 1:]")
    assert snapshot(device, 4 * MIB, 2 * MIB) == "v"
    command(device, "unmap", f"{4 * MIB + start} 512K")
    gpu(device, f"read {4 * MIB + start} 1", "ENOENT")
    gpu(device, f"fill {4 * MIB + start + 4096} 4096 1", "ENOENT")
    left = device.shell.do(f"digest(data[:{start}] + bytes(512 << 10) + data[{start} + (512 << 10):])")
    for at in {0, start + (512 << 10)} - {start}:
        part = device.shell.do(f"data[{at}:{at} + 8].hex()")
        assert gpu(device, f"read {4 * MIB + at} 8")["data"] == part
    assert client.do("digest(m[4 << 20:6 << 20])") == left
    assert device.shell.do("digest(os.pread(opened('svm/heap'), 2 << 20, 4 << 20))") == left


def test_a_store_into_a_hole_maps_anew(device: Device, client: Client) -> None:
    command(device, "unmap", "4M 2M")
    gpu(device, "read 4M 1", "ENOENT")
    client.do("m[(4 << 20) + 5000] = 9; m.flush()")
    assert gpu(device, f"read {4 * MIB + 5000} 1")["data"] == "09"
    gpu(device, "read 5M 1", "ENOENT")
    command(device, "map", "4M 2M")
    assert gpu(device, f"read {4 * MIB + 5000} 1")["data"] == "09"
    assert gpu(device, "read 5M 1")["data"] == "00"


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_hole_is_enoent_soon(device: Device, client: Client) -> None:
    command(device, "unmap", "4M 4M")
    for text in ("read 4M 1", "fill 4M 2M 1", "write 5M 00", "atomic_add 6M 1", "checksum 3M 2M"):
        gpu(device, text, "ENOENT")
        assert device.shell.seconds < 1, text


def test_atomics_of_what_is_the_cpus(device: Device, client: Client) -> None:
    command(device, "madvise", "4M 2M atomic=cpu")
    gpu(device, "atomic_add 4M 1", "EACCES")
    gpu(device, "fill 4M 4096 1")
    gpu(device, "atomic_add 6M 1")
    command(device, "madvise", "4M 2M atomic=device")
    assert gpu(device, "atomic_add 4M 1")["value"] == 0x0101010101010101
    assert client.do("m[4 << 20:(4 << 20) + 8]") == b"\2" + b"\1" * 7


def test_a_read_only_mapping(device: Device, client: Client) -> None:
    client.do("m[4 << 20] = 5; m.flush()")
    command(device, "map", "4M 2M ro")
    for text in ("fill 4M 1 1", "write 5M 00", "atomic_add 5M 1", "fill 3M 2M 1"):
        gpu(device, text, "EPERM")
    assert gpu(device, "read 4M 1")["data"] == "05"
    command(device, "map", "4M 2M")
    gpu(device, "fill 4M 1 6")
    assert client.do("m[4 << 20]") == 6


def test_no_room_in_vram(device: Device, client: Client) -> None:
    device.make("pinned", 15 * MIB, 1, "vram")
    assert device.command("objects/pinned/pin", "\n") == "ok"
    client.do("m[0] = 1")
    command(device, "prefetch", "0 4M vram", "ENODATA")
    gpu(device, "fill 0 4M 2")
    assert snapshot(device, 2 * MIB, 2 * MIB) == "s", "no second MiB is left, so the pages stay in system"
    assert client.do("m[:4 << 20].count(2)") == 4 * MIB
    assert device.command("objects/pinned/unpin", "\n") == "ok"
    command(device, "prefetch", "0 4M vram")
    assert snapshot(device, 0, 4 * MIB) == "v"


# -- unlink ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["svm_inval", "svm_invalled", "engine"])
def test_unlink_in_mid_migration_is_efault_and_leaves_nothing(device: Device, client: Client, where: str) -> None:
    nothing, pages = vram(device), device.stats()["pool"]["in_use_pages"]
    client.do("m[:4 << 20] = b'x' * (4 << 20)")
    if where == "engine":
        assert device.command("debug/pause_engine", "1") == "ok"
    else:
        device.hold(where, bo="heap")
    mover = device.begin_command(f"{HEAP}/gpu", "fill 0 4M 1")
    if where == "engine":
        device.until(lambda: device.stats()["fences"]["pending"] > 0, why="a copy is queued")
    else:
        device.until_held(where)
    device.shell.do("os.unlink(path('svm/heap'))", 3)
    if where == "engine":
        assert device.command("debug/pause_engine", "0") == "ok"
    else:
        device.release(where)
    assert mover.result(20) == 14
    assert client.do("{m[n] for n in range(0, 4 << 20, 4096)} <= {1, 120}"), "still mapped"
    client.do("m.close(); os.close(fd)")
    device.until(lambda: device.control("spaces") == 0)
    device.until(lambda: vram(device) == nothing, why="vram is as it was")
    device.until(lambda: device.stats()["pool"]["in_use_pages"] == pages, why="system pages are as they were")
    assert svm(device, "ranges") == 0


def test_inval_of_a_space_that_is_unlinked_but_mapped_flushes_in_large_writes(device: Device, client: Client) -> None:
    ino = client.do("os.fstat(fd).st_ino")
    client.do("os.unlink(path('svm/heap')); m[:4 << 20] = b'd' * (4 << 20)")
    device.control("svm_log")
    assert device.control("inval", ino=ino) is True
    writes = log(device, "WRITE")
    assert sum(size for _, size in writes) == 4 * MIB
    assert len(writes) <= 64, "not page by page"
    assert client.do("m[:4 << 20].count(b'd')") == 4 * MIB


def test_unlinked_while_in_vram_and_mapped(device: Device, client: Client) -> None:
    gpu(device, "fill 0 8M 5")
    client.do("os.unlink(path('svm/heap')); os.close(fd)")
    assert client.do("m[:8 << 20].count(5)", 20) == 8 * MIB
    client.do("m.close()")
    device.until(lambda: device.control("spaces") == 0)
    device.until(lambda: vram(device) == (0, 0), why="vram is empty")


def test_umount_in_mid_migration(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    device.shell.do(f"make('svm/heap', {SIZE})")
    client = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}); m[:4 << 20] = b'x' * (4 << 20)")
    gpu(device, "fill 8M 4M 1")
    assert device.command("debug/pause_engine", "1") == "ok"
    mover = device.begin_command(f"{HEAP}/gpu", "fill 0 4M 1")
    toucher = device.client("fd = opened('svm/heap')").begin("os.pread(fd, 1, 8 << 20)")
    device.until(lambda: device.stats()["fences"]["pending"] > 0)
    started = time.monotonic()
    assert device.stop(20) == 0
    assert time.monotonic() - started < 20
    for waiting in (mover, toucher, client):
        waiting.end()


def test_a_client_killed_while_it_stores(device: Device, client: Client) -> None:
    for number in range(6):
        victim = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}); w = memoryview(m).cast('Q')")
        victim.begin("def work():\n    n = 0\n    while True:\n        w[n % 1048576 * 2] = n; n += 509\n")
        victim.result()
        victim.begin("work()")
        gpu(device, f"fill {number}M 4M {number}")
        # A client that keeps touching a range may win against a prefetch.
        assert device.command(f"{HEAP}/prefetch", "0 8M vram", 20) in ("ok", "ENODATA")
        device.clients.remove(victim)
        victim.popen.kill()
        victim.died(5)
        victim.end()
    gpu(device, "fill 0 16M 9")
    assert client.do("m[:16 << 20].count(9)", 30) == 16 * MIB


def test_unplug(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    device.shell.do(f"make('svm/heap', {SIZE})")
    client = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}); m[:4 << 20] = b'x' * (4 << 20)")
    gpu(device, "fill 8M 4M 1")
    client.do("m[5] + m[3 << 20]")
    assert device.command("ctl/unplug", "\n", 20) == "ok"
    gpu(device, "read 0 1", "ENODEV")
    command(device, "prefetch", "0 2M vram", "ENODEV")
    assert client.do("m[5] + m[3 << 20] + m[8 << 20]") == 0
    assert client.do("os.pwrite(fd, b'y' * 10000, 4096)") == 10000
    client.do("m[7] = 1; m.flush()")
    client.do("m.close(); os.close(fd); os.unlink(path('svm/heap'))")
    assert device.stop() == 0


def test_umount_when_nobody_has_a_space_open(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS)
    device.shell.do(f"make('svm/heap', {SIZE})")
    gpu(device, "fill 8M 4M 1")
    device.end_clients()
    done = subprocess.run(["umount", "--", device.mountpoint], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert device.daemon.popen.wait(20) == 0
