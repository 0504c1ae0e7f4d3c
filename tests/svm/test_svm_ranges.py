"""Which ranges come to be, which of them migrate and how often; advice, prefetch, unmapping."""

import errno

import pytest
from trio.testing import MockClock

from tests.svm.conftest import MakeDevice, SvmDevice
from ttmfs.driver.calls import pin, validate_bo
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.svm.audit import check_svm
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.tables import notifiers_text
from ttmfs.ttm import lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Place

MIB = 1 << 20
KIB = 1 << 10
PAGE = 4096


async def only_mapped(space: AddressSpace, *parts: tuple[int, int]) -> None:
    await calls.unmap(space, 0, space.size)
    for address, length in parts:
        await calls.map_range(space, address, length, read_only=False)


async def fails(code: int, call: object) -> None:
    with pytest.raises(TtmError) as caught:
        await call  # type: ignore[misc]
    assert caught.value.errno == code, caught.value


async def test_nine_allocations_of_one_and_a_half_mib(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    """Unaligned mappings with gaps: no 2M fits anywhere, 64K ranges inside, 4K at the ends."""
    async with svm_device(vram=32 * MIB) as device:
        space = device.space(64 * MIB)
        parts = [(MIB + n * (2 * MIB + 12 * KIB) + 4 * KIB, 3 * MIB // 2) for n in range(9)]
        await only_mapped(space, *parts)
        for address, length in parts:
            for at in range(address, address + length, PAGE):
                await cpu.write(space, at, b"\1" * PAGE)
            await calls.gpu_checksum(space, address, length)
        got = [(start, size) for start, size, _where in device.locations(space)]
        wanted = []
        for address, length in parts:
            at = address
            while at < address + length:
                for size, label in ((2 * MIB, "2M"), (64 * KIB, "64K"), (4 * KIB, "4K")):
                    low = at // size * size
                    # At the beginning of a 64K that does not fit in full there are 4K ranges, so nothing overlaps.
                    if low >= address and low + size <= address + length:
                        wanted.append((low, label))
                        at = low + size
                        break
        assert got == wanted
        for start, label, where in device.locations(space):
            assert where == ("system" if label == "4K" else "vram"), f"{start:#x}"
        assert {size for _start, size in got} == {"64K", "4K"}
        space.release()
        await device.check_nothing_left()


async def test_a_chunk_that_fits_is_2m_and_next_to_a_hole_64k(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(16 * MIB)
        await calls.unmap(space, 5 * MIB, 64 * KIB)
        await calls.gpu_fill(space, 2 * MIB, PAGE, 1)
        await cpu.write(space, 4 * MIB, b"\2" * 64 * KIB)
        await calls.gpu_fill(space, 4 * MIB, PAGE, 3)
        assert device.locations(space) == [(2 * MIB, "2M", "vram"), (4 * MIB, "64K", "vram")]


async def test_under_64k_of_untouched_pages_is_taken_page_by_page(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    """check_pages_threshold: a 64K chunk needs all its CPU pages present; a 4K range never migrates."""
    async with svm_device() as device:
        space = device.space(MIB)  # no 2M fits
        await cpu.write(space, 0, b"\1" * (64 * KIB - PAGE))
        await calls.gpu_fill(space, 0, PAGE, 2)
        await cpu.write(space, 64 * KIB, b"\1" * 64 * KIB)
        await calls.gpu_fill(space, 64 * KIB, PAGE, 2)
        assert device.locations(space) == [(0, "4K", "system"), (64 * KIB, "64K", "vram")]
        # An atomic too small ever to migrate is done in system.
        assert (await calls.gpu_atomic_add(space, 8, 1))["value"] == int.from_bytes(b"\2" * 8, "little")
        assert device.locations(space)[0] == (0, "4K", "system")


async def test_a_range_migrates_once(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, PAGE, 7)
        assert device.svm.counters.migrations_in == 1
        assert (await cpu.read(space, 0, 1)) == b"\7"
        assert device.vram_used == 0
        await calls.gpu_fill(space, 0, PAGE, 8)
        assert device.locations(space) == [(0, "2M", "system")]
        assert device.svm.counters.migrations_in == 1
        # Prefetched: again.
        await calls.prefetch(space, 0, PAGE, "vram")
        assert device.locations(space) == [(0, "2M", "vram")]
        assert (await cpu.read(space, 0, 1)) == b"\x08"
        await calls.gpu_fill(space, 0, PAGE, 9)
        assert device.svm.counters.migrations_in == 2
        # Advised anew: again.
        await calls.madvise(space, 0, 4 * MIB, preferred="vram")
        await calls.gpu_fill(space, 0, PAGE, 9)
        assert device.svm.counters.migrations_in == 3


async def test_notifier_windows_bound_ranges(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        device.svm.notifier_size = MIB
        space = device.space(8 * MIB)
        await cpu.write(space, 0, b"\1" * 64 * KIB)
        await calls.gpu_fill(space, 0, 1, 1)
        await calls.gpu_fill(space, 3 * MIB, 1, 1)
        assert [row[:2] for row in device.locations(space)] == [(0, "64K"), (3 * MIB, "4K")]
        assert [line.split("\t")[:3] for line in notifiers_text(space).splitlines()[1:]] == [
            ["0x0", "0x100000", "1"],
            ["0x300000", "0x400000", "1"],
        ]
        await calls.unmap(space, 0, MIB)
        assert len(notifiers_text(space).splitlines()) == 2


async def test_after_a_prefetch_there_are_no_faults(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(12 * MIB)
        await calls.unmap(space, 3 * MIB, PAGE)
        await cpu.write(space, MIB, b"\5" * MIB)
        result = await calls.prefetch(space, 0, 12 * MIB, "vram")
        assert result["ranges"] > 6
        before = device.svm.counters.gpu_faults
        assert (await calls.gpu_fill(space, 0, 3 * MIB, 1))["faults"] == 0
        assert (await calls.gpu_checksum(space, 3 * MIB + PAGE, 9 * MIB - PAGE))["faults"] == 0
        assert device.svm.counters.gpu_faults == before
        await calls.prefetch(space, 0, 12 * MIB, "system")
        assert device.vram_used == 0
        assert (await calls.gpu_checksum(space, 0, 3 * MIB))["faults"] == 0
        await fails(errno.EINVAL, calls.prefetch(space, 0, PAGE, "gtt"))


async def test_prefetch_that_finds_no_room_is_enodata(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(vram=2 * MIB) as device:
        space = device.space(4 * MIB)
        bo = device.vdev.create_bo("pinned")
        lifetime.set_size(bo, MIB)
        await validate_bo(device.vdev, bo, (Place("vram"),), OperationContext())
        await pin(device.vdev, bo)
        await fails(errno.ENODATA, calls.prefetch(space, 0, 2 * MIB, "vram"))
        # A fault falls back to system and says so; an atomic cannot.
        assert (await calls.gpu_fill(space, 2 * MIB, PAGE, 1))["fallbacks"] == 1
        assert device.locations(space) == [(0, "2M", "system"), (2 * MIB, "2M", "system")]
        await fails(errno.ENOMEM, calls.gpu_atomic_add(space, 0, 1))
        assert device.svm.counters.alloc_failures == 5
        assert bytes(await cpu.read(space, 2 * MIB, 2)) == b"\1\1"
        bo.unpin()
        lifetime.release(bo)


async def test_equal_advice_invalidates_nothing(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 8 * MIB, 1)
        assert await calls.madvise(space, 0, 8 * MIB, preferred="fault", atomic="undefined") == {
            "changed": 0,
            "invalidated": 0,
        }
        before = device.svm.counters.invalidations
        assert (await calls.madvise(space, 0, 2 * MIB, preferred="system"))["invalidated"] == 1
        assert (await calls.madvise(space, 0, 2 * MIB, preferred="system"))["invalidated"] == 0
        assert device.svm.counters.invalidations == before + 1
        # Nothing moved; the next fault leaves it where it is, and once it is back it does not go again.
        assert device.locations(space)[0] == (0, "2M", "vram")
        await cpu.read(space, 0, 1)
        await calls.gpu_fill(space, 0, 1, 2)
        assert device.locations(space)[0] == (0, "2M", "system")
        await fails(errno.EINVAL, calls.madvise(space, 1, PAGE, preferred="vram"))
        await fails(errno.EINVAL, calls.madvise(space, 0, 5, preferred="vram"))
        await fails(errno.EINVAL, calls.madvise(space, 0, PAGE, preferred="mars"))
        await fails(errno.EINVAL, calls.madvise(space, 0, PAGE))


async def test_advice_across_a_range_gives_it_up(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 6)
        await calls.madvise(space, MIB, MIB, preferred="vram")
        assert device.locations(space) == []
        # Two intervals now: no 2M fits; 64K ranges over what is in VRAM are bound where it is.
        assert (await calls.gpu_checksum(space, 0, 64 * KIB))["faults"] == 1
        assert device.locations(space) == [(0, "64K", "vram")]
        assert bytes(await cpu.read(space, 0, 1)) == b"\6"


@pytest.mark.parametrize("at", [0, MIB // 2, MIB])
async def test_partial_unmap_keeps_the_rest_in_vram(svm_device: MakeDevice, autojump_clock: MockClock, at: int) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 9)
        await calls.unmap(space, at, 512 * KIB)
        assert device.locations(space) == []
        letters = ["v"] * 512
        letters[at // PAGE : (at + 512 * KIB) // PAGE] = ["."] * 128
        assert space.snapshot(0, 512) == "".join(letters).encode()
        assert device.vram_used == 2 * MIB
        await fails(errno.ENOENT, calls.gpu_fill(space, at, PAGE, 1))
        # The CPU reads zeros there without moving anything.
        assert bytes(await cpu.read(space, at, PAGE)) == bytes(PAGE)
        assert device.vram_used == 2 * MIB
        other = (at + MIB) % (2 * MIB)
        assert bytes(await cpu.read(space, other, PAGE)) == b"\x09" * PAGE
        assert device.vram_used == 0
        expected = bytearray(b"\x09" * 2 * MIB)
        expected[at : at + 512 * KIB] = bytes(512 * KIB)
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == bytes(expected)
        await calls.unmap(space, 0, 4 * MIB)
        assert device.vdev.ttm.num_bos == 0
        assert device.vdev.pool.in_use_pages == 0


async def test_mapped_anew_over_survivors_is_mixed_evicted_and_right(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 9)
        await calls.unmap(space, MIB, 8 * KIB)
        await calls.map_range(space, MIB, 8 * KIB, read_only=False)
        await cpu.write(space, MIB, b"\4" * 8)
        await calls.gpu_fill(space, 0, 1, 3)
        assert device.locations(space) == [(0, "2M", "vram")]
        expected = bytearray(b"\x09" * 2 * MIB)
        expected[MIB : MIB + 8 * KIB] = b"\4" * 8 + bytes(8 * KIB - 8)
        expected[0] = 3
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == bytes(expected)
        # With migration ruled out the fault itself meets the mixture.
        await calls.prefetch(space, 0, 2 * MIB, "vram")
        await calls.unmap(space, MIB, 8 * KIB)
        await calls.map_range(space, MIB, 8 * KIB, read_only=False)
        await calls.madvise(space, 0, 2 * MIB, preferred="system")
        result = await calls.gpu_checksum(space, 0, 2 * MIB)
        assert device.svm.counters.mixed == 1
        assert result["restarts"] == 1
        assert device.locations(space) == [(0, "2M", "system")]


async def test_bad_addresses(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB + 100)
        await fails(errno.EFAULT, calls.gpu_fill(space, 5 * MIB, 1, 0))
        await fails(errno.EFAULT, calls.gpu_fill(space, 4 * MIB, 101, 0))
        await calls.gpu_fill(space, 4 * MIB, 100, 3)
        await calls.unmap(space, 0, PAGE)
        await fails(errno.ENOENT, calls.gpu_read(space, 0, 1))
        await calls.map_range(space, 0, PAGE, read_only=True)
        await calls.gpu_read(space, 0, 1)
        await fails(errno.EPERM, calls.gpu_fill(space, 0, 1, 1))
        await calls.madvise(space, 2 * MIB, MIB, atomic="cpu")
        await fails(errno.EACCES, calls.gpu_atomic_add(space, 2 * MIB, 1))
        await fails(errno.EINVAL, calls.gpu_atomic_add(space, 3 * MIB + 4, 1))
        await fails(errno.EINVAL, calls.unmap(space, 1, PAGE))
        await fails(errno.EINVAL, calls.map_range(space, 0, 100, read_only=True))
        with pytest.raises(TtmError) as caught:
            space.set_size((1 << 40) + 1)
        assert caught.value.errno == errno.EFBIG
        space.unlink()
        await fails(errno.EFAULT, calls.gpu_fill(space, 0, 1, 1))
        assert bytes(await cpu.read(space, 4 * MIB, 100)) == b"\3" * 100


async def test_a_cpu_store_maps_a_hole_anew(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await device.cache.store(space, MIB, b"old")
        await calls.unmap(space, 0, 2 * MIB)
        assert await device.cache.load(space, MIB, 3) == bytes(3)
        assert space.num_blocks() == 0
        await device.cache.store(space, MIB, b"new")
        await device.cache.writeback(space)
        assert (await calls.gpu_read(space, MIB, 4))["data"] == b"new\0".hex()
        await fails(errno.ENOENT, calls.gpu_read(space, MIB + PAGE, 4))


async def test_truncate_waits_for_nobody_and_loses_nothing(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 8 * MIB, 5)
        device.cache.truncate(space, 2 * MIB + 100)
        space.set_size(2 * MIB + 100)
        assert device.vram_used == 4 * MIB
        await fails(errno.EFAULT, calls.gpu_fill(space, 3 * MIB, 1, 1))
        space.set_size(8 * MIB)
        assert bytes(await cpu.read(space, 2 * MIB, 200)) == b"\5" * 100 + bytes(100)
        assert bytes(await cpu.read(space, 4 * MIB, 8)) == bytes(8)
        assert bytes(await cpu.read(space, 0, 8)) == b"\5" * 8
        space.set_size(0)
        assert check_svm(device.svm) == []
        space.release()
        await device.check_nothing_left()


def moved(device: SvmDevice) -> tuple[int, int]:
    return device.svm.counters.migrations_in, device.svm.counters.migrations_out


async def test_touching_one_range_leaves_its_neighbours(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        for at in range(0, 8 * MIB, MIB):
            await device.cache.store(space, at, b"\1")
        await calls.gpu_fill(space, 2 * MIB, 6 * MIB, 3)
        assert await device.cache.load(space, 0, 1) == b"\1"
        assert moved(device) == (3, 0)
        device.cache.reads.clear()
        device.cache.invals.clear()
        assert await device.cache.load(space, 4 * MIB, 1) == b"\3"
        assert device.cache.reads == [4 * MIB // PAGE]
        assert device.cache.invals == []
        assert moved(device) == (3, 1)
        assert [where for _start, _size, where in device.locations(space)] == ["vram", "system", "vram"]
        # What another client has cached elsewhere stays cached.
        await device.cache.load(space, 0, 1)
        assert device.cache.reads == [4 * MIB // PAGE]
