"""Clients and device on the same pages: nobody sees old bytes, nobody waits in a circle."""

import errno
from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.svm.conftest import MakeDevice, SvmDevice
from ttmfs.driver.calls import validate_bo
from ttmfs.errors import TtmError
from ttmfs.svm import calls, cpu
from ttmfs.svm.migrate import FaultTally, alloc_vram
from ttmfs.svm.space import AddressSpace
from ttmfs.sync.fence import Fence
from ttmfs.sync.offload import Lane
from ttmfs.ttm import lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.placement import Place

MIB = 1 << 20
PAGE = 4096


async def test_dirty_pages_reach_the_device_and_its_writes_the_clients(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        cache = device.cache
        for number in range(20):
            await cache.store(space, 64, number.to_bytes(8, "little"))
            assert (await calls.gpu_atomic_add(space, 64, 100))["value"] == number
            assert int.from_bytes(await cache.load(space, 64, 8), "little") == number + 100


async def test_a_read_over_several_ranges_brings_back_the_first_only(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 8 * MIB, 4)
        data = bytes(await cpu.read(space, 2 * MIB - PAGE, 2 * PAGE))
        assert data == b"\4" * 2 * PAGE
        assert [row[2] for row in device.locations(space)] == ["system", "vram", "vram", "vram"]
        assert device.svm.counters.served_in_place == 1
        # The second is cached by a client now: the device's next write there must drop it.
        device.cache.invals.clear()
        await calls.gpu_fill(space, 2 * MIB, PAGE, 5)
        assert device.cache.invals == [(512, 513)]


async def test_a_write_to_vram_is_applied_there_and_brings_it_back(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 4)
        await cpu.write(space, 100, b"cpu")
        assert device.locations(space) == [(0, "2M", "system")]
        assert bytes(await cpu.read(space, 99, 5)) == b"\4cpu\4"


async def test_requests_of_moving_pages_wait_and_others_do_not(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(copy_latency=1.0) as device:
        space = device.space(8 * MIB)
        for at in range(0, 8 * MIB, MIB):
            await cpu.write(space, at, b"\7" * 8)
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(calls.gpu_fill, space, 0, 8, 1)
                await trio.testing.wait_all_tasks_blocked()
                assert set(space.snapshot(0, 512)) == set(b"m")
                started = trio.current_time()
                await cpu.write(space, 2 * MIB, b"\6")
                assert bytes(await cpu.read(space, 3 * MIB, 1)) == b"\7"
                assert trio.current_time() == started
                # A WRITE goes to the source of a copy that has not begun, and the copy carries it on.
                await cpu.write(space, MIB, b"late")
                assert bytes(await cpu.read(space, MIB, 8)) == b"late\7\7\7\7"
                assert trio.current_time() > started
        assert bytes(await cpu.read(space, 0, 8)) == b"\1" * 8


@pytest.mark.parametrize("cut", [None, PAGE + 100])
async def test_an_append_drops_the_page_with_the_old_end_from_the_caches(
    svm_device: MakeDevice, autojump_clock: MockClock, cut: int | None
) -> None:
    """H32, also for a page that was cached when it was in the middle, and has the end since the file was cut."""
    async with svm_device() as device:
        size = 3 * PAGE if cut else PAGE + 100
        space, cache = device.space(size), device.cache
        await cache.load(space, PAGE, 1)
        if cut:
            cache.truncate(space, cut)
            space.set_size(cut)
        await cache.pwrite(space, PAGE + 100, b"new")
        await trio.sleep(1)
        assert cache.invals == [(1, 2)]
        assert not space.gate.outstanding
        assert await cache.load(space, PAGE + 99, 4) == b"\0new"
        cache.invals.clear()
        await cache.pwrite(space, 2 * PAGE - 1, b"x")
        assert cache.invals == [(1, 2)], "it was read again"
        await cache.pwrite(space, 2 * PAGE, b"y")
        assert cache.invals == [(1, 2)], "no page has the end in its middle"


async def test_a_client_that_keeps_touching_wins_and_the_range_stays(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    """Migration gives up (EBUSY) when every INVAL finds the page handed out anew."""
    async with svm_device() as device:
        space = device.space(2 * MIB)
        await device.cache.store(space, 0, b"x")
        inner = device.cache.invalidate

        async def invalidate(owner: object, first: int, count: int) -> None:
            await inner(space, first, count)
            await device.cache.load(space, 0, 1)

        device.cache.invalidate = invalidate  # type: ignore[method-assign, assignment]
        result = await calls.gpu_write(space, 8, b"y")
        assert device.locations(space) == [(0, "2M", "system")]
        assert result["fallbacks"] == 1
        assert device.svm.counters.migrations_busy == 1
        device.cache.invalidate = inner  # type: ignore[method-assign]
        assert (await calls.gpu_read(space, 0, 9))["data"] == b"x\0\0\0\0\0\0\0y".hex()


async def test_a_read_that_waits_for_a_copy_is_served_when_its_page_is_invalidated(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    """READ waits for the copy back, which waits for a job, which at its end invalidates the READ's page."""
    async with svm_device() as device:
        space = device.space(4 * MIB)
        await calls.gpu_fill(space, 0, 4 * MIB, 1)
        # Cached although in VRAM: answered beyond the first range.
        await cpu.read(space, 2 * MIB - PAGE, 2 * PAGE)
        release = trio.Event()
        device.vdev.compute.submit(device.vdev.compute.queues.svm, _Hold(device, release))
        job = await calls.gpu_fill(space, 2 * MIB, PAGE, 2, wait=False)
        got: list[bytes] = []

        async def reader() -> None:
            got.append(await device.cache.load(space, 2 * MIB, 4))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            release.set()
        fence = device.vdev.find_fence(job["fence"])
        assert fence is None or await fence.wait(10)
        assert trio.current_time() < 5, "the READ was not woken for the INVAL"
        assert await device.cache.load(space, 2 * MIB, 4) == b"\2" * 4


class _Hold:
    """A job that ends when it is told."""

    kind = "hold"
    name = ""

    def __init__(self, device: SvmDevice, release: trio.Event) -> None:
        self.release = release
        self.deps: tuple[Fence, ...] = ()
        self.fence = device.vdev.compute.queues.svm.timeline.next_fence("hold")

    async def run(self, lane: Lane) -> None:
        await self.release.wait()


async def test_atomics_hold_their_range_for_a_timeslice(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        device.svm.atomic_timeslice_ms = 40.0
        space = device.space(2 * MIB)
        await calls.gpu_atomic_add(space, 0, 5)
        started = trio.current_time()
        assert bytes(await cpu.read(space, 0, 1)) == b"\5"
        assert 0.03 < trio.current_time() - started < 0.1
        # Not so for other accesses.
        await calls.prefetch(space, 0, 1, "vram")
        started = trio.current_time()
        await cpu.read(space, 0, 1)
        assert trio.current_time() == started


async def test_jobs_keep_the_pages_they_use(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    """Unmapping, truncating and releasing under a queued job: at once, and the memory is given back after it."""
    async with svm_device() as device:
        space = device.space(8 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 1)
        await calls.prefetch(space, 2 * MIB, 2 * MIB, "system")
        release = trio.Event()
        device.vdev.compute.submit(device.vdev.compute.queues.svm, _Hold(device, release))
        in_vram = await calls.gpu_fill(space, 0, 2 * MIB, 7, wait=False)
        in_system = await calls.gpu_fill(space, 2 * MIB, 2 * MIB, 7, wait=False)
        assert in_vram["fence"] != in_system["fence"]
        await calls.unmap(space, 0, 4 * MIB)
        assert device.vram_used == 2 * MIB
        assert device.vdev.pool.in_use_pages == 512
        # Whoever gets memory now must not get that.
        await cpu.write(space, 4 * MIB, b"\3" * 2 * MIB)
        release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert device.vram_used == 0
        assert device.vdev.pool.in_use_pages == 512
        assert bytes(await cpu.read(space, 4 * MIB, 2 * MIB)) == b"\3" * 2 * MIB
        space.release()
        await device.check_nothing_left()


async def test_unlinked_while_it_migrates(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(copy_latency=1.0) as device:
        space = device.space(4 * MIB)
        await cpu.write(space, 0, b"\1" * MIB)
        failures = []

        async def fill() -> None:
            with pytest.raises(TtmError) as caught:
                await calls.gpu_fill(space, 0, 4 * MIB, 1)
            failures.append(caught.value.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill)
            await trio.testing.wait_all_tasks_blocked()
            assert set(space.snapshot(0, 512)) == set(b"m")
            space.unlink()
            space.release()
        assert failures == [errno.EFAULT]
        await device.check_nothing_left()


async def test_cancelled_while_it_migrates(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(copy_latency=1.0) as device:
        space = device.space(4 * MIB)
        await cpu.write(space, 0, b"\1" * MIB)
        for delay in (0.0, 0.5, 0.99):
            with trio.move_on_after(delay):
                await calls.gpu_fill(space, 0, 2 * MIB, 1)
            assert bytes(await cpu.read(space, MIB - 1, 2)) in (b"\1\0", b"\1\1")
            space.table.find(0).skip_migrate = False  # type: ignore[union-attr]
        space.release()
        await device.check_nothing_left()


async def test_a_fault_that_cannot_end_is_bounded(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device(fault_timeout=2.0) as device:
        space = device.space(4 * MIB)
        await cpu.write(space, 0, b"\1" * MIB)
        device.vdev.engines[0].paused = True
        started = trio.current_time()
        with pytest.raises(TtmError) as caught:
            await calls.gpu_atomic_add(space, 0, 1)
        assert caught.value.errno == errno.ETIME
        assert trio.current_time() - started <= 3 * 2.0
        # A READ is served from the source of the copy when its time is up.
        assert bytes(await cpu.read(space, 0, 1)) == b"\1"
        device.vdev.engines[0].paused = False
        await trio.testing.wait_all_tasks_blocked()
        assert bytes(await cpu.read(space, 0, 1)) == b"\1"
        space.release()
        await device.check_nothing_left()


async def test_migrations_are_made_one_at_a_time_and_all_come_to_pass(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device(copy_latency=0.1) as device:
        space = device.space(16 * MIB)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(calls.gpu_fill, space, number * 2 * MIB, 8, number)
        assert [row[2] for row in device.locations(space)] == ["vram"] * 8
        await alloc_vram(space, space.table.find(0), FaultTally(), "again", "vram")  # type: ignore[arg-type]
        assert device.svm.counters.migrations_in == 8


async def test_what_was_read_while_a_job_ran_is_dropped_at_its_end(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        cache = device.cache
        await calls.prefetch(space, 0, 1, "system")
        await cache.store(space, 0, b"old")
        inner = cache.invalidate

        async def invalidate(owner: object, first: int, count: int) -> None:
            await inner(space, first, count)
            cache.invalidate = inner  # type: ignore[method-assign]
            # Between the flush at the start and the bytes: a client has the old page again.
            assert await cache.load(space, 0, 3) == b"old"

        cache.invalidate = invalidate  # type: ignore[method-assign, assignment]
        await calls.gpu_write(space, 0, b"new")
        assert await cache.load(space, 0, 3) == b"new"


async def test_a_page_that_a_client_only_wrote_is_cached_too(svm_device: MakeDevice, autojump_clock: MockClock) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        await device.cache.pwrite(space, 0, b"c" * PAGE)
        assert device.cache.reads == []
        await calls.gpu_write(space, 0, b"g")
        assert await device.cache.load(space, 0, 2) == b"gc"


async def prefetch(space: AddressSpace, region: str) -> None:
    with suppress(TtmError):
        await calls.prefetch(space, 0, 1, region)


@pytest.mark.parametrize("into_vram", [True, False])
async def test_truncated_while_its_bytes_move(
    svm_device: MakeDevice, autojump_clock: MockClock, into_vram: bool
) -> None:
    async with svm_device() as device:
        # A chunk that changes hands does so in one step.
        device.vdev.ttm.inject.ban_exchange = True
        space = device.space(2 * MIB)
        await calls.gpu_fill(space, 0, 2 * MIB, 5)
        if into_vram:
            await calls.prefetch(space, 0, 1, "system")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(prefetch, space, "vram" if into_vram else "system")
            while space.move_of(0, 512, CopyState.RUNNING) is None:
                await trio.lowlevel.checkpoint()
            # All but the last step of the copy has been, or will be, made.
            await trio.lowlevel.checkpoint()
            space.set_size(100)
            space.set_size(2 * MIB)
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == b"\5" * 100 + bytes(2 * MIB - 100)
        space.release()
        await device.check_nothing_left()


async def test_a_migration_waits_for_jobs_on_the_system_pages(
    svm_device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with svm_device() as device:
        space = device.space(2 * MIB)
        await calls.prefetch(space, 0, 1, "system")
        release = trio.Event()
        device.vdev.compute.submit(device.vdev.compute.queues.svm, _Hold(device, release))
        await calls.gpu_fill(space, 0, 2 * MIB, 3, wait=False)
        assert device.locations(space) == [(0, "2M", "system")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.prefetch, space, 0, 1, "vram")
            await trio.testing.wait_all_tasks_blocked()
            assert space.snapshot(0, 1) == b"s"
            release.set()
        assert device.locations(space) == [(0, "2M", "vram")]
        assert bytes(await cpu.read(space, 0, 2 * MIB)) == b"\3" * 2 * MIB


@pytest.mark.parametrize("seconds", [0.5, 5.0])
async def test_an_allocation_waits_a_second_for_victims_that_are_held(
    svm_device: MakeDevice, autojump_clock: MockClock, seconds: float
) -> None:
    async with svm_device(vram=2 * MIB) as device:
        space = device.space(2 * MIB)
        bo = device.vdev.create_bo("held")
        lifetime.set_size(bo, MIB)
        await validate_bo(device.vdev, bo, (Place("vram"),), OperationContext())
        await bo.resv.lock()
        async with trio.open_nursery() as nursery:

            async def release() -> None:
                await trio.sleep(seconds)
                bo.unreserve()

            nursery.start_soon(release)
            started = trio.current_time()
            result = await calls.gpu_fill(space, 0, 1, 1)
            assert trio.current_time() - started < 1.2
        assert device.svm.counters.alloc_failures == (seconds > 1)
        assert result.get("fallbacks", 0) == (seconds > 1)
        assert device.locations(space) == [(0, "2M", "system" if seconds > 1 else "vram")]
        lifetime.release(bo)
