"""What a fault answers: SIGBUS, RETRY, OOM, and zeros after the device is gone; what a first touch brings back."""

import errno
import random
from typing import Any

import pytest
import trio
import trio.testing

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, fails, make, move, outcome, pattern
from tests.core.together_machine import CachedBo, Unmapper
from ttmfs.driver import calls
from ttmfs.driver.suspend import unplug
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.fault import default_fault
from ttmfs.ttm.funcs import FaultFlag, FaultResult, VmFault
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.unmap import unmap_virtual


async def test_a_gutted_bo_is_placed_anew_by_its_next_use() -> None:
    async with device(placement="gtt") as vdev:
        bo = await make(vdev, "a")
        assert bo.mem_type == "gtt"
        await move(vdev, bo, "none")
        assert bytes(await access.read(bo, 100, 5000)) == bytes(5000)
        assert bo.mem_type == "gtt"


async def test_what_a_fault_answers() -> None:
    async with device(fault_timeout=0.2) as vdev:
        bo = await make(vdev, "a")
        deadline = trio.current_time() + 1
        past = VmFault(bo, 256, 1, deadline=deadline)
        assert await default_fault(past) is FaultResult.SIGBUS
        await bo.resv.lock()
        nowait = VmFault(bo, 0, 1, deadline=deadline, flags=FaultFlag.ALLOW_RETRY | FaultFlag.RETRY_NOWAIT)
        assert await default_fault(nowait) is FaultResult.RETRY
        assert not nowait.reserved
        bo.unlock()
        good = VmFault(bo, 0, 1, deadline=deadline)
        assert await default_fault(good) is FaultResult.OK
        assert not bo.resv.locked


async def test_no_memory_is_oom() -> None:
    async with device(memory=8 * MIB, swap=0) as vdev:
        bo = vdev.create_bo("a")
        with fails(errno.ENOMEM):
            await access.write(bo, 0, b"x" * (9 * MIB))


async def test_an_unplug_that_is_interrupted_leaves_nobody_old_bytes() -> None:
    """There is no second one."""
    async with device() as vdev:
        unmapper = WaitingUnmapper()
        vdev.ttm.unmapper = unmapper
        bos = [await make(vdev, name, place="vram") for name in "abc"]
        for bo in bos:
            await check(bo)
        unmapper.unmapped.clear()
        with trio.CancelScope() as scope:
            scope.cancel()
            await unplug(vdev, bos)
        assert unmapper.unmapped == ["a", "b", "c"]


async def test_after_unplug_reads_are_zeros_and_writes_are_dropped() -> None:
    async with device() as vdev:
        unmapper = WaitingUnmapper()
        vdev.ttm.unmapper = unmapper
        bo = await make(vdev, "a", place="vram")
        await check(bo)
        unmapper.unmapped.clear()
        await unplug(vdev, [bo])
        assert unmapper.unmapped == ["a"]
        assert bytes(await access.read(bo, 0, MIB)) == bytes(MIB)
        await access.write(bo, 0, b"x" * PAGE)
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)
        with fails(errno.ENODEV):
            await move(vdev, bo, "system")


async def test_what_a_fault_has_moved_half_way_goes_back_without_an_inval_of_its_own_pages(
    autojump_clock: object,
) -> None:
    """It would wait for the folio that its own WRITE holds, for ever."""
    async with device(placement="vram") as vdev:
        vdev.ttm.unmapper = unmapper = Unmapper(random.Random(1))
        bo = vdev.create_bo("a")
        file = unmapper.cached[bo] = CachedBo(bo)
        set_size(bo, 4 * PAGE)
        await calls.restore(vdev, bo, OperationContext())
        set_size(bo, 8 * PAGE)
        cache: Any = unmapper.cache
        bo.looks_only = True
        assert await cache.load(file, 0, PAGE) == bytes(PAGE)
        bo.looks_only = False
        assert (bo.placed, bo.handed_out) == (False, True)
        attr = vdev.ttm.inject["move"]
        # To vram, which needs a hop; the hop; to vram.
        attr.probability, attr.interval = 100, 3
        with trio.fail_after(5):
            # The hop has given all of it memory, which is all that a WRITE needs.
            await cache.pwrite(file, 6 * PAGE, b"x" * PAGE)
        assert not attr.times
        assert (bo.mem_type, cache.invals) == ("system", [])
        assert bytes(await access.read(bo, 0, bo.size)) == bytes(6 * PAGE) + b"x" * PAGE + bytes(PAGE)


async def test_a_request_that_would_unmap_its_own_pages_is_told_and_other_pages_are_unmapped() -> None:
    async with device() as vdev:
        vdev.ttm.unmapper = unmapper = WaitingUnmapper()
        bo = await make(vdev, "a", 8 * PAGE)

        async def own() -> None:
            bo.handed_out = True
            await unmap_virtual(bo, 4, 2)
            with pytest.raises(AssertionError, match="its own pages"):
                await unmap_virtual(bo)

        assert await bo.gate.park(own, 5, 2, 2)
        assert (unmapper.unmapped, bo.gate.unmapping) == (["a"], False)
        bo.handed_out = True
        await unmap_virtual(bo)
        assert unmapper.unmapped == ["a", "a"]


class _Watched(Unmapper):
    """An INVAL that nobody lets end is a finding."""

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        with trio.move_on_after(5) as scope:
            await super().invalidate(bo, first_page, num_pages)
        assert not scope.cancelled_caught, f"{bo.name} is unmapped for who is unmapped for it"


async def test_two_hurried_writes_that_need_memory_do_not_wait_for_each_other() -> None:
    """H31: each takes some from the other's BO, whose folio is locked until that one is answered."""
    async with device(vram=0, memory=8 * MIB, swap=32 * MIB, pool_limit=0) as vdev:
        vdev.ttm.unmapper = unmapper = _Watched(random.Random(1))
        cache: Any = unmapper.cache
        bos = [await make(vdev, name, 2 * MIB) for name in "ab"]
        for bo in bos:
            unmapper.cached[bo] = CachedBo(bo)
            set_size(bo, bo.size + 8 * PAGE)
        filler = await make(vdev, "filler", vdev.pool.free_pages * PAGE)
        await calls.pin(vdev, filler)
        wrote: dict[str, int] = {}

        async def write(bo: BufferObject) -> None:
            file = unmapper.cached[bo]
            wrote[bo.name] = await outcome(lambda: cache.pwrite(file, 2 * MIB + PAGE, b"x" * 10))

        reserve = vdev.pool.alloc(vdev.pool.reserve_pages, use_reserve=True)
        async with trio.open_nursery() as nursery:
            for bo in bos:
                bo.handed_out = True
                assert bo.resv.trylock()
                nursery.start_soon(write, bo)
            await trio.testing.wait_all_tasks_blocked()
            waiting = list(vdev.ttm.counters.requests.parked)
            assert len(waiting) == 2
            for request in waiting:
                request.hurry()
            for bo in bos:
                bo.unlock()
        vdev.pool.free(reserve.pages)
        # One may have to be told, that the other is served: without the reserve nothing is left for it.
        assert sorted(wrote.values()) in ([0, 0], [0, errno.ENOMEM])
        for bo in bos:
            there = bytes(10) if wrote[bo.name] else b"x" * 10
            assert bytes(await access.read(bo, 2 * MIB + PAGE, 11)) == there + b"\0"
            assert bytes(await access.read(bo, 0, 2 * MIB)) == pattern(bo.name, 2 * MIB)
