"""Moves never wait for the copy; the old space lives until the copy is done; requests meanwhile get the right bytes."""

import errno
import random
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.driver.conftest import MakeDevice
from ttmfs.driver import calls
from ttmfs.driver.calls import Result
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import CopyState
from ttmfs.units import PAGE_SIZE

MIB = 1 << 20


async def make(vdev: VirtualDevice, name: str, size: int, place: str = "", seed: int = 1) -> tuple[BufferObject, bytes]:
    bo = vdev.create_bo(name)
    data = random.Random(seed).randbytes(size)
    await access.write(bo, 0, data)
    if place:
        await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), OperationContext())
        await bo.resv.wait(Usage.BOOKKEEP)
    return bo, data


async def content(bo: BufferObject) -> bytes:
    return bytes(await access.read(bo, 0, bo.size))


async def validate(vdev: VirtualDevice, bo: BufferObject, place: str, **ctx: Any) -> Result:
    return await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), OperationContext(**ctx))


async def busy(vdev: VirtualDevice, bo: BufferObject, seconds: float) -> Fence:
    return (await submit_job(vdev, Job("busy", srcs=(bo,), seconds=seconds), OperationContext())).fence


class WaitsForReaders:
    """As the kernel: an INVAL returns when every READ of the BO that is under way was answered."""

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        with trio.fail_after(5):
            while bo.device.counters.requests.parked:
                await trio.sleep(0.01)


async def test_a_bo_keeps_no_fence_of_a_copy_that_is_done(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "bo", MIB)
        await validate(vdev, bo, "vram")
        await bo.copies[-1].fence.wait()
        await bo.resv.reserve()
        try:
            # With the reservation held, what has signaled and is still kept would come too.
            assert list(bo.resv.fences(Usage.BOOKKEEP)) == []
        finally:
            bo.resv.unlock()
        assert await content(bo) == data


async def test_five_moves_behind_a_busy_job_are_scheduled_without_blocking(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", 2 * MIB, "vram")
        fence = await busy(vdev, bo, 5)
        started = trio.current_time()
        for place in ("gtt", "vram", "gtt", "vram", "gtt"):
            await validate(vdev, bo, place)
        assert trio.current_time() - started < 0.5
        assert not fence.signaled
        assert len(bo.copies) == 5
        assert vdev.ttm.num_ghosts == 5
        assert await content(bo) == data
        assert fence.signaled
        assert vdev.ttm.num_ghosts == 0
        assert vdev.ttm.managers["vram"].usage == 0


async def test_a_write_behind_a_queued_move_does_not_wait(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        await busy(vdev, bo, 10)
        await validate(vdev, bo, "gtt")
        started = trio.current_time()
        await access.write(bo, 5000, b"x" * 9000)
        assert trio.current_time() - started < 1
        expected = data[:5000] + b"x" * 9000 + data[14000:]
        assert await content(bo) == expected


async def test_a_read_behind_a_queued_move_waits_for_it_but_not_for_jobs(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        fence = await busy(vdev, bo, 3)
        started = trio.current_time()
        assert await content(bo) == data
        assert trio.current_time() - started < 0.1, "a CPU fault waits for moves only"
        await validate(vdev, bo, "gtt")
        assert await content(bo) == data
        assert fence.signaled
        assert trio.current_time() - started == pytest.approx(3, abs=0.5)


async def test_a_parked_read_is_served_from_the_source_when_an_inval_is_due(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        await content(bo)
        vdev.ttm.unmapper = WaitsForReaders()
        await busy(vdev, bo, 10)
        await validate(vdev, bo, "gtt")
        got = []

        async def reader() -> None:
            got.append((await content(bo), trio.current_time()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            bo.handed_out = True
            started = trio.current_time()
            await validate(vdev, bo, "vram")
        assert got[0][0] == data
        assert got[0][1] - started < 1


async def test_fault_timeout_serves_from_the_source(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device(fault_timeout=2.0) as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        await busy(vdev, bo, 30)
        await validate(vdev, bo, "gtt")
        started = trio.current_time()
        assert await content(bo) == data
        assert trio.current_time() - started == pytest.approx(2, abs=0.2)
        assert bo.copies


async def test_evicted_space_is_free_at_once_and_its_next_owner_waits(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device(vram=4 * MIB) as vdev:
        a, a_data = await make(vdev, "a", 4 * MIB, "vram", seed=1)
        vdev.engines[0].paused = True
        vram = vdev.ttm.managers["vram"].arena
        assert vram is not None
        before = bytes(vram.view(0, 1024))
        await calls.evict_one(vdev, a, OperationContext())
        assert vdev.ttm.managers["vram"].usage == 0, "the space is free before the copy"
        b, b_data = await make(vdev, "b", 4 * MIB, seed=2)
        await validate(vdev, b, "vram")
        assert bytes(vram.view(0, 1024)) == before, "no byte moved yet"
        got = []

        async def reader(bo: BufferObject) -> None:
            got.append(await content(bo))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader, b)
            await trio.testing.wait_all_tasks_blocked()
            assert not got
            vdev.engines[0].paused = False
        assert got == [b_data]
        assert await content(a) == a_data


async def test_more_eviction_contexts_than_slots_wait_instead_of_failing(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device(vram=12 * MIB, copy_engines=12, copy_latency=0.5) as vdev:
        bos = [await make(vdev, f"a{n}", MIB, "vram", seed=n) for n in range(12)]
        for bo, _data in bos:
            await calls.evict_one(vdev, bo, OperationContext())
        assert len(vdev.ttm.managers["vram"].pending_eviction_fences()) <= 8
        fresh, data = await make(vdev, "b", 12 * MIB, seed=99)
        await validate(vdev, fresh, "vram")
        assert await content(fresh) == data
        for bo, old in bos:
            assert await content(bo) == old


async def test_no_wait_gpu_finds_a_place_with_pending_evictions_busy(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device(vram=4 * MIB) as vdev:
        a, _data = await make(vdev, "a", 4 * MIB, "vram")
        vdev.engines[0].paused = True
        await calls.evict_one(vdev, a, OperationContext())
        b, _data = await make(vdev, "b", MIB, seed=2)
        with pytest.raises(TtmError) as caught:
            await validate(vdev, b, "vram", no_wait_gpu=True)
        assert caught.value.errno == errno.ENOMEM
        vdev.engines[0].paused = False


async def test_gtt_to_system_waits_and_no_wait_gpu_makes_it_ebusy(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "gtt")
        fence = await busy(vdev, bo, 2)
        with pytest.raises(TtmError) as caught:
            await validate(vdev, bo, "system", no_wait_gpu=True)
        assert caught.value.errno == errno.EBUSY
        await validate(vdev, bo, "system")
        assert fence.signaled
        assert await content(bo) == data


async def test_write_to_a_fresh_bo_on_space_still_copied_out_retreats_to_system(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device(vram=4 * MIB, fault_timeout=1.0) as vdev:
        a, a_data = await make(vdev, "a", 4 * MIB, "vram")
        vdev.engines[0].paused = True
        await calls.evict_one(vdev, a, OperationContext())
        b = vdev.create_bo("b")
        lifetime.set_size(b, MIB)
        await validate(vdev, b, "none")
        await validate(vdev, b, "vram")
        assert b.copies[0].src is None
        started = trio.current_time()
        await access.write(b, 0, b"hello")
        assert trio.current_time() - started < 3
        assert b.mem_type == "system"
        assert (await content(b))[:5] == b"hello"
        vdev.engines[0].paused = False
        assert await content(a) == a_data
        assert await content(b) == b"hello" + bytes(MIB - 5)


@pytest.mark.parametrize("place", ["gtt", "gtt vram", "gtt vram gtt"])
async def test_it_retreats_from_moves_of_what_is_not_cleared_yet_too(
    device: MakeDevice, autojump_clock: MockClock, place: str
) -> None:
    """Their copies run later, to where they were to go: not over what was written meanwhile."""
    async with device(vram=4 * MIB, fault_timeout=1.0) as vdev:
        b = vdev.create_bo("b")
        lifetime.set_size(b, MIB)
        await validate(vdev, b, "none")
        vdev.engines[0].paused = True
        await validate(vdev, b, "vram")
        for where in place.split():
            await validate(vdev, b, where)
        assert len(b.copies) > 1
        lifetime.set_size(b, MIB + PAGE_SIZE)
        await access.write(b, 0, b"hello")
        assert b.mem_type == "system"
        await access.write(b, MIB, b"tail")
        lifetime.set_size(b, 0)
        lifetime.set_size(b, MIB)
        await access.write(b, MIB - 5, b"hello")
        vdev.engines[0].paused = False
        assert await content(b) == bytes(MIB - 5) + b"hello"
        await b.resv.wait(Usage.BOOKKEEP)
        await trio.testing.wait_all_tasks_blocked()
        assert await content(b) == bytes(MIB - 5) + b"hello"
        assert vdev.ttm.num_ghosts == 0


async def test_what_a_job_writes_is_not_left_behind(device: MakeDevice, autojump_clock: MockClock) -> None:
    """The job was submitted over the space that is not cleared yet: its bytes come there."""
    async with device(vram=4 * MIB, fault_timeout=1.0) as vdev:
        b = vdev.create_bo("b")
        lifetime.set_size(b, MIB)
        await validate(vdev, b, "none")
        vdev.engines[0].paused = True
        await validate(vdev, b, "vram")
        await submit_job(vdev, Job("fill", dst=b, value=7), OperationContext())
        with pytest.raises(TtmError) as caught:
            await access.write(b, 0, b"hello")
        assert caught.value.errno == errno.EIO
        vdev.engines[0].paused = False
        await b.resv.wait(Usage.BOOKKEEP)
        assert await content(b) == b"\7" * MIB


async def test_no_await_between_gate_check_and_reply(device: MakeDevice, autojump_clock: MockClock) -> None:
    """A READ that is answered with a view must not be overtaken by a move: no checkpoint may lie in between."""
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        coroutine = access.read(bo, 0, PAGE_SIZE)
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        assert bytes(stopped.value.value) == data[:PAGE_SIZE]


async def test_views_are_dropped_at_every_change(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        for change in ("gtt", "vram", "system", "vram"):
            await content(bo)
            assert bo.vmap is not None
            await validate(vdev, bo, change)
            assert bo.vmap is None
            assert await content(bo) == data
        lifetime.set_size(bo, MIB - 1)
        assert bo.vmap is None
        assert await content(bo) == data[:-1]


async def test_sync_moves_leave_nothing_pending(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device(sync_moves=True, copy_latency=0.2) as vdev:
        bo, data = await make(vdev, "a", MIB)
        started = trio.current_time()
        await validate(vdev, bo, "vram")
        assert trio.current_time() - started >= 0.2
        assert not bo.copies
        assert vdev.ttm.num_ghosts == 0
        assert await content(bo) == data


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("cpu", ["memcpy", "banned"])
@pytest.mark.parametrize("engine", ["ok", "fails", "fails and no work item"])
async def test_failure_matrix(device: MakeDevice, autojump_clock: MockClock, engine: str, cpu: str, mode: str) -> None:
    async with device(sync_moves=mode == "sync") as vdev:
        bo, data = await make(vdev, "a", 2 * MIB, "vram")
        inject = vdev.ttm.inject
        if engine != "ok":
            inject["engine"].probability = 100
        if engine == "fails and no work item":
            inject["work_alloc"].probability = 100
        inject.ban_memcpy = cpu == "banned"
        result = await validate(vdev, bo, "gtt")
        if mode == "sync" or engine == "fails and no work item":
            assert "fence" not in result
        lost = engine != "ok" and cpu == "banned"
        if lost:
            with pytest.raises(TtmError) as caught:
                await calls.wait_bo(vdev, bo, Usage.KERNEL, 5)
            assert caught.value.errno == errno.EIO
            with pytest.raises(TtmError):
                await content(bo)
            await validate(vdev, bo, "none")
            assert await content(bo) == bytes(2 * MIB), "gutting makes it usable again"
        else:
            await calls.wait_bo(vdev, bo, Usage.KERNEL, 5)
            assert await content(bo) == data
            assert vdev.engines[0].cpu_copies == (0 if engine == "ok" else 1)


async def test_a_failed_engine_cannot_be_replaced_by_a_cpu_that_does_not_reach(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device(visible_vram=4 * MIB) as vdev:
        bo, _data = await make(vdev, "a", MIB, "vram:topdown")
        assert not bo.visible
        vdev.ttm.inject["engine"].probability = 100
        await validate(vdev, bo, "gtt")
        with pytest.raises(TtmError) as caught:
            await calls.wait_bo(vdev, bo, Usage.KERNEL, 5)
        assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("place", ["page_alloc", "resource_alloc", "tt_create", "fence_slot", "unmap", "move"])
async def test_an_injected_failure_leaves_the_bo_as_it_was(
    device: MakeDevice, autojump_clock: MockClock, place: str
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", 2 * MIB, "vram")
        usage = {name: manager.usage for name, manager in vdev.ttm.managers.items()}
        in_use = vdev.pool.in_use_pages
        attr = vdev.ttm.inject[place]
        attr.probability, attr.times = 100, -1
        with pytest.raises(TtmError):
            await validate(vdev, bo, "gtt")
        attr.probability = 0
        assert bo.mem_type == "vram"
        assert {name: manager.usage for name, manager in vdev.ttm.managers.items()} == usage
        assert vdev.pool.in_use_pages == in_use
        assert vdev.selfcheck() == []
        assert await content(bo) == data
        await validate(vdev, bo, "gtt")
        assert await content(bo) == data


@pytest.mark.parametrize("place", ["ghost", "deps_grow", "fence_array"])
async def test_an_injected_shortage_makes_the_move_wait_and_succeed(
    device: MakeDevice, autojump_clock: MockClock, place: str
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", 2 * MIB, "vram")
        await busy(vdev, bo, 1)
        attr = vdev.ttm.inject[place]
        attr.probability, attr.times = 100, -1
        await validate(vdev, bo, "gtt")
        assert bo.mem_type == "gtt"
        assert await content(bo) == data
        assert vdev.ttm.num_ghosts == 0


async def test_copy_states_are_seen_in_snapshot(device: MakeDevice, autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bo, _data = await make(vdev, "a", 4 * PAGE_SIZE, "vram")
        assert bo.snapshot() == b"vvvv"
        vdev.engines[0].paused = True
        await validate(vdev, bo, "gtt")
        assert bo.snapshot() == b"mmmm"
        assert bo.copies[0].state is CopyState.QUEUED
        vdev.engines[0].paused = False
        await bo.resv.wait(Usage.KERNEL)
        assert bo.snapshot() == b"gggg"


async def test_where_few_may_wait_the_oldest_is_served_from_the_source(
    device: MakeDevice, autojump_clock: MockClock
) -> None:
    async with device() as vdev:
        bo, data = await make(vdev, "a", MIB, "vram")
        await busy(vdev, bo, 10)
        await validate(vdev, bo, "gtt")
        vdev.ttm.max_parked = 2
        ended = []

        async def reader(page: int) -> None:
            got = bytes(await access.read(bo, page * PAGE_SIZE, PAGE_SIZE))
            assert got == data[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
            ended.append((page, trio.current_time()))

        async with trio.open_nursery() as nursery:
            for page in range(4):
                nursery.start_soon(reader, page)
                await trio.testing.wait_all_tasks_blocked()
            assert [page for page, _when in ended] == [0, 1]
        assert sorted(page for page, _when in ended) == [0, 1, 2, 3]
