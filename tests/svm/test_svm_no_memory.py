"""The exclusive retry: who finds no memory once, for an allocation, to bind or to evict, tries once more alone."""

import errno
import zlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from tests.svm.conftest import MIB, MakeDevice
from ttmfs.driver.calls import pin, validate_bo
from ttmfs.driver.jobs import Job
from ttmfs.driver.queues import MAX_JOBS
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.swap import store_chunk
from ttmfs.ttm import access, kswapd
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.placement import Place

PAGE = 4096
PLACES = (
    "page_alloc", "resource_alloc", "tt_create", "fence_slot", "deps_grow", "fence_array", "ghost", "work_alloc"
)
"""All that is memory, of debug/fail_*."""


async def fill(space: AddressSpace) -> None:
    """All of it: in vram there is room for half, so that ranges are evicted and fall back to nothing."""
    assert "fallbacks" not in await calls.gpu_fill(space, 0, space.size, 7)


async def fill_mixed(space: AddressSpace) -> None:
    """Ranges of which a part is in vram, of an allocation before a partial unmap."""
    await calls.unmap(space, MIB, PAGE)
    await calls.map_range(space, MIB, PAGE, read_only=False)
    assert "fallbacks" not in await calls.gpu_fill(space, 0, 2 * MIB, 7)


async def fill_in_system(space: AddressSpace) -> None:
    await calls.madvise(space, 0, space.size, preferred="system")
    await calls.gpu_fill(space, 0, space.size, 7)


async def add(space: AddressSpace) -> None:
    for address in range(0, space.size, 2 * MIB):
        await calls.gpu_atomic_add(space, address, 0)


async def go_to_and_fro(space: AddressSpace) -> None:
    for region in ("vram", "system", "preferred"):
        await calls.prefetch(space, 0, space.size, region)


@pytest.mark.parametrize("work", [fill, fill_mixed, fill_in_system, add, go_to_and_fro])
@pytest.mark.parametrize("place", PLACES)
async def test_one_failure_reaches_nobody(
    svm_device: MakeDevice, autojump_clock: MockClock, place: str, work: Callable[[AddressSpace], Awaitable[None]]
) -> None:
    """The `skip`-th time that memory is asked for there is none, for each of the first so many times."""
    for skip in range(6):
        async with svm_device(vram=4 * MIB, memory=16 * MIB, swap=64 * MIB) as device:
            space = device.space(8 * MIB)
            for at in range(0, 8 * MIB, MIB):
                await cpu.write(space, at, b"\7" * MIB)
            await calls.gpu_fill(space, 0, PAGE, 7)
            await store_chunk(space, space.chunks[3], 512)
            attr = device.vdev.ttm.inject[place]
            attr.probability, attr.times, attr.interval = 100, 1, skip + 1
            await work(space)
            met = attr.times == 0
            attr.probability = 0
            assert (await calls.gpu_checksum(space, 2 * MIB, 6 * MIB))["value"] == zlib.crc32(b"\7" * 6 * MIB)
            space.release()
            await device.check_nothing_left()
        if not met:
            break


async def test_ranges_that_do_not_fit_into_memory_together_take_turns(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of its range in memory and needs the other half, of which there is none: all waited for all."""

    async def idle(_device: Device) -> None:
        """It would make room before anybody asks."""

    monkeypatch.setattr(kswapd, "watermark", idle)
    async with svm_device(memory=8 * MIB, vram=0, swap=64 * MIB) as device:
        space = device.space(16 * MIB)
        for number in range(8):
            await cpu.write(space, number * 2 * MIB, bytes([number + 1]) * 2 * MIB)
        for chunk in list(space.chunks.values()):
            await store_chunk(space, chunk, 512)
        for address in range(0, 16 * MIB, 2 * MIB):
            for at in range(0, 240, 48):
                await cpu.read(space, address + at * PAGE, 48 * PAGE)
        assert device.vdev.pool.free_pages < 272, "each needs as many at the least"
        began, found = trio.current_time(), {}

        async def read(number: int) -> None:
            result = await calls.gpu_checksum(space, number * 2 * MIB, 2 * MIB)
            found[number] = result["value"] == zlib.crc32(bytes([number + 1]) * 2 * MIB)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(read, number)
        assert found == dict.fromkeys(range(8), True)
        assert trio.current_time() - began < 1, "nobody waits until the other gives up"
        assert device.svm.counters.gpu_restarts > 0, "they never met: the test tests nothing"
        space.release()
        await device.check_nothing_left()


async def test_what_is_never_there_is_said_after_one_more_attempt(
    svm_device: MakeDevice, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with svm_device(vram=4 * MIB) as device:
        blocker = device.vdev.create_bo("blocker")
        blocker.size = 4 * MIB
        await validate_bo(device.vdev, blocker, (Place("vram"),), OperationContext())
        await pin(device.vdev, blocker)
        space = device.space(2 * MIB)
        result = await calls.gpu_fill(space, 0, PAGE, 1)
        assert (result["fallbacks"], device.locations(space)) == (1, [(0, "2M", "system")])
        assert (device.svm.counters.alloc_failures, device.svm.counters.alloc_retries) == (1, 1)
        with pytest.raises(TtmError) as caught:
            await calls.prefetch(space, 0, 2 * MIB, "vram")
        assert caught.value.errno == errno.ENODATA
        times = 0

        async def populate(*arguments: object, **options: object) -> bool:
            nonlocal times
            times += 1
            raise TtmError(errno.ENOMEM, "no memory")

        monkeypatch.setattr("ttmfs.svm.fault.populate", populate)
        space.invalidate(0, 512, "test")
        with pytest.raises(TtmError) as caught:
            await calls.gpu_fill(space, 0, PAGE, 2)
        assert (caught.value.errno, times) == (errno.ENOMEM, 2)
        assert not device.svm.migrate_lock.locked()
        monkeypatch.undo()
        await calls.gpu_fill(space, 0, PAGE, 2)


async def test_who_has_his_memory_does_not_wait_behind_who_waits_for_some(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(memory=16 * MIB, vram=8 * MIB, swap=0) as device:
        has = device.space(64 << 10, "has")
        await cpu.write(has, 0, b"b" * (64 << 10))
        holder = device.vdev.create_bo("holder")
        for at in range(0, 14 * MIB, MIB):
            await access.write(holder, at, bytes([1]) * MIB)
        await submit_job(device.vdev, Job("busy", srcs=(holder,), seconds=60), OperationContext())
        wants = [device.space(2 * MIB, f"wants {number}") for number in range(4)]

        async def want(space: AddressSpace) -> None:
            await calls.madvise(space, 0, 2 * MIB, preferred="system")
            with pytest.raises(TtmError):
                await calls.gpu_fill(space, 0, 2 * MIB, 7)

        async with trio.open_nursery() as nursery:
            for space in wants:
                nursery.start_soon(want, space)
            await trio.sleep(0.1)
            began = trio.current_time()
            await calls.gpu_fill(has, 0, 64 << 10, 1, wait=False)
            assert trio.current_time() - began < 0.1
            assert device.locations(has) == [(0, "64K", "vram")]
        for space in (has, *wants):
            space.release()


async def test_jobs_of_a_space_are_bounded_and_none_of_root(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(compute_engines=2) as device:
        space, queues = device.space(2 * MIB), device.vdev.compute.queues
        for number in range(2):
            bo = device.vdev.create_bo(f"busy {number}")
            await access.write(bo, 0, bytes(PAGE))
            job = Job("busy", srcs=(bo,), seconds=100, queue=f"q{number}")
            await submit_job(device.vdev, job, OperationContext())
        await trio.sleep(1)
        for _ in range(MAX_JOBS):
            await calls.gpu_fill(space, 0, PAGE, 7, wait=False)
        with pytest.raises(TtmError, match=f"{MAX_JOBS} jobs of") as caught:
            await calls.gpu_fill(space, 0, PAGE, 7, wait=False)
        assert caught.value.errno == errno.EAGAIN
        assert queues.find("mine", 0) is None, "root may go on"
        await trio.sleep(100)
        await calls.gpu_fill(space, 0, PAGE, 8)
        assert space.pending_jobs == 0
        space.release()
