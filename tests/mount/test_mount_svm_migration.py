"""Ranges of an address space that migrate, seen by processes that map it: coherence, locality, what moves when."""

from collections.abc import Callable

import pytest

from tests.mount.mount_harness import MIB, Client, Device
from tests.mount.svm_tools import HEAP, MOUNT_OPTIONS, SIZE, command, gpu, log, map_space, snapshot, svm, vram

pytestmark = pytest.mark.mount


@pytest.fixture
def client(device: Device) -> Client:
    """A process that maps a space of 64 MiB."""
    return map_space(device)


# -- locality ----------------------------------------------------------------------------------------------------------


def test_a_touch_of_one_range_in_vram_does_not_fault_its_neighbours(device: Device, client: Client) -> None:
    gpu(device, "fill 0 8M 7")
    assert snapshot(device, 0, 8 * MIB) == "v"
    before = svm(device, "migrations_out")
    assert client.do("m[4 << 20]") == 7
    assert log(device, "READ") == [(4 * MIB, 4096)]
    assert [snapshot(device, at * MIB, 2 * MIB) for at in (0, 2, 4, 6)] == ["v", "v", "s", "v"]
    assert svm(device, "migrations_out") - before == 1
    assert client.do("{m[(4 << 20) + 4096 * n] for n in range(512)} == {7}")
    assert all(4 * MIB <= at < 6 * MIB for at, _ in log(device, "READ"))
    assert svm(device, "migrations_out") - before == 1


def test_what_the_device_does_to_one_range_leaves_the_cache_of_the_others(device: Device, client: Client) -> None:
    client.do("m[:8 << 20] = b'c' * (8 << 20)")
    assert client.do("len({m[4096 * n] for n in range(2048)})") == 1
    device.control("svm_log")
    gpu(device, "fill 4M 2M 9")
    seen = device.control("svm_log")
    assert all(at >= 4 * MIB and at + size <= 6 * MIB for kind, _, at, size in seen if kind == "INVAL"), seen
    assert client.do("sorted({m[4096 * n] for n in (*range(1024), *range(1536, 2048))})") == [99]
    assert log(device, "READ") == []
    assert client.do("sorted({m[4096 * n] for n in range(1024, 1536)})") == [9]
    assert len(log(device, "READ")) == 512


def test_a_pread_over_several_ranges_is_right(device: Device, client: Client) -> None:
    for number in range(4):
        gpu(device, f"fill {number * 2}M 2M {number + 1}")
    expected = "b''.join(bytes([n + 1]) * (2 << 20) for n in range(4))"
    assert client.do(f"digest(os.pread(fd, 8 << 20, 0)) == digest({expected})")
    direct = device.client("fd = opened('svm/heap', os.O_RDWR | os.O_DIRECT)")
    gpu(device, "fill 1M 2M 9")
    assert direct.do("[direct(fd, 0, 4 << 20).count(bytes([n])) for n in (1, 9, 2)]") == [MIB, 2 * MIB, MIB]
    gpu(device, "fill 1M 2M 8")
    assert client.do("[m[0], m[1 << 20], m[(3 << 20) - 1], m[3 << 20]]") == [1, 8, 8, 2], "cached before"


# -- coherence ---------------------------------------------------------------------------------------------------------


def test_the_device_sees_what_was_only_stored_and_the_other_way_round(device: Device, client: Client) -> None:
    for at in (5, 4096, 2 * MIB - 1, 9 * MIB + 77):
        client.do(f"m[{at}] = 0x5a")
        assert gpu(device, f"read {at} 1")["data"] == "5a"
        gpu(device, f"write {at} a5")
        assert client.do(f"m[{at}]") == 0xA5
    client.do("w = memoryview(m).cast('Q')")
    for number in range(20):
        client.do(f"w[1000] += {number}")
        assert gpu(device, "atomic_add 8000 1000")["value"] == client.do("w[1000]") - 1000
    assert client.do("w[1000]") == 190 + 20 * 1000


def test_two_processes_and_the_device(device: Device, client: Client) -> None:
    other = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE})")
    for number in range(30):
        client.do(f"m[100] = {number}")
        assert other.do("m[100]") == number
        gpu(device, f"fill 101 10 {number}")
        assert other.do("m[105]") == number
        assert client.do("m[100:102]") == bytes([number, number])


def test_dirty_pages_of_a_client_that_was_killed(device: Device, client: Client) -> None:
    client.do("for n in range(0, 4 << 20, 4096): m[n] = 3")
    device.clients.remove(client)
    client.end()
    gpu(device, "fill 4M 2M 3")
    answer = gpu(device, "read 0 4097")
    assert answer["data"] == "03" + "00" * 4095 + "03"


def test_nowait_and_its_fence(device: Device, client: Client) -> None:
    fence = gpu(device, "fill 0 8M 5 nowait")["fence"]
    assert device.command("ctl/wait", f"{fence} 10", 12) == "ok"
    assert client.do("[m[0], m[(8 << 20) - 1], m[8 << 20]]") == [5, 5, 0]


def test_a_touch_waits_for_the_copy_back(device: Device, client: Client) -> None:
    gpu(device, "fill 0 2M 7")
    assert snapshot(device, 0, 2 * MIB) == "v"
    assert device.command("debug/pause_engine", "1") == "ok"
    client.begin("m[5000]")
    other = device.client("fd = opened('svm/heap')").begin("os.pread(fd, 2, 9000)")
    writer = device.client("fd = opened('svm/heap')").begin("os.pwrite(fd, b'WW', 100000)")
    device.until_parked()
    assert device.shell.do("os.pread(opened('svm/heap'), 1, 8 << 20)", 3) == b"\0", "other ranges go on"
    assert device.command("debug/pause_engine", "0") == "ok"
    assert client.result() == 7
    assert other.result() == b"\7\7"
    assert writer.result() == 2
    assert client.do("m[99999:100003]") == b"\7WW\7"


def test_requests_during_an_inval_are_served(device: Device, client: Client) -> None:
    client.do("m[0:2 << 20] = b'a' * (2 << 20)")
    device.hold("svm_inval", bo="heap")
    mover = device.begin_command(f"{HEAP}/gpu", "fill 1M 4096 9")
    device.until_held("svm_inval")
    reader = device.client("fd = opened('svm/heap')")
    assert reader.do("os.pread(fd, 4096, 8192)", 3) == b"a" * 4096
    assert reader.do("os.pwrite(fd, b'W' * 10000, 100000)", 3) == 10000
    client.do("m[300000] = 66", 3)
    assert reader.do("os.fstat(fd).st_size", 3) == SIZE
    device.release("svm_inval")
    assert mover.result(20) == 0
    assert client.do("[m[1 << 20], m[99999:100001], m[300000], m[109999:110001]]") == [9, b"aW", 66, b"Wa"]


def test_truncate_during_an_inval_does_not_wait(device: Device, client: Client) -> None:
    client.do("m[0:2 << 20] = b'a' * (2 << 20)")
    device.hold("svm_inval", bo="heap")
    mover = device.begin_command(f"{HEAP}/gpu", "fill 0 4096 9")
    device.until_held("svm_inval")
    device.client("fd = opened('svm/heap')").do("os.ftruncate(fd, 1 << 20)", 3)
    device.release("svm_inval")
    assert mover.result(20) in (0, 14)
    assert client.do("os.fstat(fd).st_size") == MIB
    client.do(f"os.ftruncate(fd, {SIZE})")
    assert client.do("m[1 << 20:2 << 20].count(0)") == MIB


# -- migration ---------------------------------------------------------------------------------------------------------


def test_after_prefetch_the_device_takes_no_fault(device: Device, client: Client) -> None:
    client.do("m[4 << 20:8 << 20] = bytes(range(256)) * (4 << 12)")
    command(device, "prefetch", "4M 4M vram")
    assert snapshot(device, 4 * MIB, 4 * MIB) == "v"
    before = svm(device, "gpu_faults")
    assert gpu(device, "checksum 4M 4M")["faults"] == 0
    gpu(device, "fill 5M 1M 1")
    gpu(device, "atomic_add 7M 5")
    assert svm(device, "gpu_faults") == before
    command(device, "prefetch", "4M 4M system")
    assert snapshot(device, 4 * MIB, 4 * MIB) == "s"
    assert client.do("[m[(4 << 20) + 255], m[5 << 20], m[7 << 20]]") == [255, 1, 5]


def test_a_range_migrates_once_unless_prefetched(device: Device, client: Client) -> None:
    gpu(device, "fill 0 2M 1")
    moved = svm(device, "migrations_in")
    for number in range(3):
        assert client.do("m[77]") == number + 1
        gpu(device, f"fill 0 4096 {number + 2}")
    assert svm(device, "migrations_in") == moved
    assert snapshot(device, 0, 2 * MIB) == "s"
    command(device, "prefetch", "0 2M vram")
    assert snapshot(device, 0, 2 * MIB) == "v"
    assert client.do("[m[77], m[4096]]") == [4, 1]


def test_range_sizes_and_what_never_migrates(device: Device, client: Client) -> None:
    client.do(f"os.ftruncate(fd, {2 * MIB + (64 << 10) + 4096}); os.pwrite(fd, b'x' * {2 * MIB + (68 << 10)}, 0)")
    gpu(device, f"fill 0 {2 * MIB + (68 << 10)} 3")
    assert snapshot(device, 0, 2 * MIB) == "v"
    assert snapshot(device, 2 * MIB, 64 << 10) == "v"
    assert snapshot(device, 2 * MIB + (64 << 10), 4096) == "s"
    assert client.do(f"os.pread(fd, 3 << 20, 0) == b'\\3' * {2 * MIB + (68 << 10)}")


def test_equal_madvise_invalidates_nothing_and_a_changed_one_does(device: Device, client: Client) -> None:
    gpu(device, "fill 0 4M 1")
    command(device, "madvise", "0 4M preferred=vram atomic=device")
    gpu(device, "checksum 0 4M")
    before = svm(device, "invalidations")
    device.control("svm_log")
    command(device, "madvise", "0 4M preferred=vram atomic=device")
    command(device, "madvise", "1M 1M preferred=vram")
    assert svm(device, "invalidations") == before
    assert gpu(device, "checksum 0 4M")["faults"] == 0
    command(device, "madvise", "0 2M preferred=system")
    assert svm(device, "invalidations") > before
    assert gpu(device, "checksum 0 2M")["faults"] > 0
    assert client.do("[m[0], m[(4 << 20) - 1]]") == [1, 1]


def test_preferred_system_keeps_the_device_on_system_pages(device: Device, client: Client) -> None:
    command(device, "madvise", "8M 4M preferred=system")
    gpu(device, "fill 8M 4M 1")
    assert snapshot(device, 8 * MIB, 4 * MIB) == "s"
    command(device, "prefetch", "8M 4M preferred")
    assert snapshot(device, 8 * MIB, 4 * MIB) == "s"
    command(device, "madvise", "8M 4M preferred=vram")
    command(device, "prefetch", "8M 4M preferred")
    assert snapshot(device, 8 * MIB, 4 * MIB) == "v"
    assert client.do("m[12582911]") == 1


def test_both_kinds_evict_each_other(device: Device, client: Client) -> None:
    device.make("a", 12 * MIB, 0xA5, "vram")
    gpu(device, "fill 0 12M 1")
    assert device.status("a")["evictions"] == 1, "the space has evicted the BO"
    assert snapshot(device, 0, 12 * MIB) == "v"
    out = svm(device, "migrations_out")
    assert device.command("objects/a/validate", "vram", 20) == "ok"
    assert svm(device, "migrations_out") >= out + 4, "the BO has evicted ranges"
    assert device.status("a")["mem_type"] == "vram"
    assert client.do("m[:12 << 20].count(1)") == 12 * MIB
    assert device.shell.do("open(path('bo/a'), 'rb').read().count(0xa5)") == 12 * MIB
    assert gpu(device, "read 0 4")["data"] == "01010101"


def test_suspend_and_resume(device: Device, client: Client) -> None:
    gpu(device, "fill 0 4M 7")
    client.do("m[5] = 8")
    assert device.command("ctl/suspend", "\n", 20) == "ok"
    try:
        assert vram(device)[0] == 0
        gpu(device, "read 0 1", "ENODEV")
        command(device, "prefetch", "0 2M vram", "ENODEV")
        assert client.do("[m[4], m[5], m[(4 << 20) - 1]]") == [7, 8, 7]
    finally:
        assert device.command("ctl/resume", "\n", 20) == "ok"
    assert gpu(device, "read 4 2")["data"] == "0708"


def test_the_table_of_ranges(device: Device, client: Client) -> None:
    assert device.shell.do(f"slurp('{HEAP}/ranges')").splitlines() == ["start\tend\tsize\tlocation\tbo\tflags\tseq"]
    gpu(device, "fill 2M 4M 1")
    client.do("m[2 << 20]")
    rows = [line.split("\t") for line in device.shell.do(f"slurp('{HEAP}/ranges')").splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["0x200000", "0x400000", "2M", "system"],
        ["0x400000", "0x600000", "2M", "vram"],
    ]
    assert rows[0][4] == "-"
    assert rows[1][4] in device.shell.do("slurp('regions/vram/lru')")
    notifiers = device.shell.do(f"slurp('{HEAP}/notifiers')").splitlines()[1:]
    assert [line.split("\t")[:3] for line in notifiers] == [["0x0", "0x20000000", "2"]]
    assert "svm_2M_migrate_count: 2\n" in device.shell.do(f"slurp('{HEAP}/stats')")


# -- the tests above are able to fail ----------------------------------------------------------------------------------


def test_without_inval_neither_side_sees_the_other(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS, patches=("without_svm_inval",))
    device.shell.do(f"make('svm/heap', {SIZE})")
    client = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}); m[5] = 7")
    assert gpu(device, "read 5 1")["data"] == "00"
    gpu(device, "fill 0 4096 9")
    assert client.do("m[6]") == 0


def test_with_a_readahead_a_touch_brings_neighbours_back(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS, patches=("svm_reads_ahead",))
    device.shell.do(f"make('svm/heap', {SIZE})")
    client = device.client(f"fd = opened('svm/heap'); m = mapped(fd, {SIZE}, advice=mmap.MADV_NORMAL)")
    gpu(device, "fill 0 8M 7")
    assert client.do("m[4 << 20]") == 7
    assert "s" in snapshot(device, 2 * MIB, 2 * MIB)


@pytest.mark.parametrize("place", ["page_alloc", "resource_alloc", "fence_slot"])
def test_one_want_of_memory_reaches_nobody(device: Device, client: Client, place: str) -> None:
    client.do("m[:8 << 20] = b'c' * (8 << 20); m.flush()")
    for number, text in enumerate(("fill 0 2M 7", "fill 4M 8M 7", "atomic_add 4M 0", "checksum 0 12M")):
        for key, value in (("interval", 1 + number % 2), ("times", 1), ("probability", 100)):
            assert device.command(f"debug/fail_{place}/{key}", str(value)) == "ok"
        assert "fallbacks" not in gpu(device, text)
    assert snapshot(device, 0, 2 * MIB) == "v"
    assert client.do("[m[0], m[(2 << 20) - 1], m[2 << 20], m[4 << 20], m[(12 << 20) - 1]]") == [7, 7, 99, 7, 7]


@pytest.mark.parametrize("mode", ["os.O_RDONLY", "os.O_RDWR"])
def test_what_is_read_into_a_mapping_of_a_bo_is_there_although_the_bo_was_invalidated_meanwhile(
    device: Device, client: Client, mode: str
) -> None:
    client.do("m[:1 << 20] = bytes(1 << 20); m.flush()")
    device.make("b", MIB, fill=1)
    reader = device.client(f"fd = opened('svm/heap', {mode}); m = mmap.mmap(opened('bo/b'), 1 << 20); m[0]")
    gpu(device, "fill 0 2M 9")
    device.command("debug/pause_engine", "1")
    reader.begin("os.preadv(fd, [m], 0)")
    assert reader.waits(0.5), "nobody holds its READ"
    device.command("objects/b/backup", "\n")
    device.command("debug/pause_engine", "0")
    assert reader.result(20) == MIB
    assert reader.do("sorted(set(m[:1 << 20]))") == [9]


def test_prefetch_and_advice_over_several_regions(mounted: Callable[..., Device]) -> None:
    device = mounted(*MOUNT_OPTIONS, "--region", "hbm=8M:buddy")
    map_space(device).do("m[:8 << 20] = bytes(range(256)) * (8 << 12); m.flush()")
    command(device, "unmap", "3M 1M")
    command(device, "madvise", "4M 2M preferred=hbm")
    command(device, "prefetch", "0 8M preferred")
    rows = [line.split("\t") for line in device.shell.do(f"slurp('{HEAP}/ranges')").splitlines()[1:]]
    assert {row[3] for row in rows if row[0] == "0x400000"} == {"hbm"}
    assert {row[3] for row in rows if row[0] != "0x400000"} == {"vram"}
    assert not [row for row in rows if 0x300000 <= int(row[0], 16) < 0x400000]
    assert device.stats()["regions"]["hbm"]["used"] == 2 * MIB
    assert gpu(device, "read 0x400001 2")["data"] == "0102"
    assert device.command("ctl/evict", "hbm") == "ok"
    assert device.stats()["regions"]["hbm"]["used"] == 0
    assert gpu(device, "read 0x400001 2")["data"] == "0102"
    for name, text in (("prefetch", "0 2M gtt"), ("madvise", "0 2M preferred=hbm2")):
        assert "vram hbm system" in command(device, name, text, "EINVAL")["error"]
