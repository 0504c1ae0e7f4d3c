"""Injected failures and what happens to the whole device: every page stays readable and right, nothing is left."""

import errno
import zlib

import pytest
import trio.testing
from trio.testing import MockClock

from tests.svm.conftest import MakeDevice
from ttmfs.driver.calls import evict_region
from ttmfs.driver.suspend import unplug
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20
PAGE = 4096
PLACES = ("page_alloc", "resource_alloc", "move", "engine", "fence_slot", "ghost", "deps_grow", "work_alloc", "unmap")


@pytest.mark.parametrize("ban", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("skip", range(5))
async def test_a_failure_anywhere_loses_nothing(
    svm_device: MakeDevice, autojump_clock: MockClock, place: str, skip: int, ban: bool
) -> None:
    """The `skip`-th time that a place is asked it fails once, while ranges go in, out by eviction and by touches."""
    async with svm_device(vram=4 * MIB) as device:
        space = device.space(8 * MIB)
        inject = device.vdev.ttm.inject
        inject.ban_memcpy = ban
        wanted = bytearray()
        for number in range(8):
            await cpu.write(space, number * MIB, bytes([number + 1]) * MIB)
            wanted += bytes([number + 1]) * MIB
        attr = inject[place]
        attr.probability, attr.times, attr.interval = 100, 1, skip + 1
        for number in range(4):
            try:
                await calls.gpu_fill(space, number * 2 * MIB, PAGE, 0x77)
                wanted[number * 2 * MIB : number * 2 * MIB + PAGE] = b"\x77" * PAGE
            except TtmError as error:
                assert error.errno in (errno.ENOMEM, errno.EIO), error  # noqa: PT017
        try:
            await evict_region(device.vdev, "vram", None, OperationContext())
        except TtmError as error:
            assert error.errno in (errno.ENOMEM, errno.EIO, errno.EBUSY), error  # noqa: PT017
        for at in range(0, 8 * MIB, MIB):
            assert bytes(await cpu.read(space, at, MIB)) == wanted[at : at + MIB], f"at {at:#x}"
        attr.probability = 0
        assert (await calls.gpu_checksum(space, 0, 8 * MIB))["value"] == zlib.crc32(bytes(wanted))
        space.release()
        await device.check_nothing_left()


@pytest.mark.parametrize("place", ["engine", "page_alloc", "fence_slot"])
async def test_what_cannot_come_back_is_read_where_it_is(
    svm_device: MakeDevice, autojump_clock: MockClock, place: str
) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 6)
        inject = device.vdev.ttm.inject
        inject.ban_memcpy = True
        inject[place].probability, inject[place].times = 100, -1
        assert bytes(await cpu.read(space, 5, 3)) == b"\6\6\6"
        await cpu.write(space, 6, b"w")
        assert device.locations(space) == [(0, "2M", "vram")]
        assert device.svm.counters.served_in_place > 0
        inject[place].probability = 0
        # Handed out: the device has it invalidated, and all is as it should be.
        await calls.gpu_fill(space, 5, 1, 7)
        assert bytes(await cpu.read(space, 5, 3)) == b"\7w\6"
        assert device.locations(space) == [(0, "2M", "system")]
        space.release()
        await device.check_nothing_left()


async def test_suspend_and_resume(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 8 * MIB, 6)
        await device.vdev.power.suspend(OperationContext())
        assert device.vram_used == 0
        assert space.snapshot(0, 2048) == b"s" * 2048
        with pytest.raises(TtmError) as caught:
            await calls.gpu_fill(space, 0, 1, 1)
        assert caught.value.errno == errno.ENODEV
        assert bytes(await cpu.read(space, 0, 4)) == b"\6" * 4
        await device.vdev.power.resume(OperationContext())
        assert (await calls.gpu_checksum(space, 0, 8 * MIB))["value"] == zlib.crc32(b"\6" * 8 * MIB)
        space.release()
        await device.check_nothing_left()


async def test_unplug(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 6)
        await device.cache.load(space, 0, 4)
        await unplug(device.vdev, [])
        await device.svm.unplug()
        assert await device.cache.load(space, 0, 4) == bytes(4)
        await device.cache.store(space, 0, b"lost")
        await device.cache.writeback(space)
        with pytest.raises(TtmError) as caught:
            await calls.gpu_fill(space, 0, 1, 1)
        assert caught.value.errno == errno.ENODEV
        space.release()
        await device.check_nothing_left()


async def test_evict_all_and_defrag_all_and_no_wait(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 8 * MIB, 6)
        # A copy back is waited for, so that an eviction that may not wait leaves it.
        with pytest.raises(TtmError) as caught:
            await evict_region(device.vdev, "vram", None, OperationContext(no_wait_gpu=True))
        assert caught.value.errno == errno.EBUSY
        assert device.vram_used == 8 * MIB
        await evict_region(device.vdev, "vram", None, OperationContext())
        assert device.vram_used == 0
        assert device.svm.counters.evictions == 4
        assert [row[2] for row in device.locations(space)] == ["system"] * 4
        assert bytes(await cpu.read(space, 0, 8)) == b"\6" * 8


async def read_page_by_page(space: AddressSpace, address: int, end: int) -> None:
    for at in range(address, end, PAGE):
        await cpu.read(space, at, PAGE)


async def write_page_by_page(space: AddressSpace, first: int, end: int) -> None:
    for at in range(first, end, PAGE):
        await cpu.write(space, at, b"content")


async def test_no_memory_to_come_back_to(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    """System is full: what is in VRAM is read there; a READ of a hole is ENOMEM; nothing is lost."""
    async with svm_device(memory=8 * MIB, vram=8 * MIB, gtt=0) as device:
        space = device.space(32 * MIB)
        await calls.gpu_fill(space, 0, 4 * MIB, 6)
        with pytest.raises(TtmError) as caught:
            await write_page_by_page(space, 4 * MIB, 32 * MIB)
        assert caught.value.errno == errno.ENOMEM
        with pytest.raises(TtmError) as caught:
            await read_page_by_page(space, 24 * MIB, 32 * MIB)
        assert caught.value.errno == errno.ENOMEM
        assert bytes(await cpu.read(space, 0, 2 * PAGE)) == b"\6" * 2 * PAGE
        assert device.locations(space)[:2] == [(0, "2M", "vram"), (2 * MIB, "2M", "vram")]
        # A page that was handed out can be written: the reserve is for that.
        await cpu.write(space, 0, b"kept")
        assert (await calls.gpu_read(space, 0, 5))["data"] == b"kept\6".hex()
        space.release()
        await device.check_nothing_left()
        await trio.testing.wait_all_tasks_blocked()
