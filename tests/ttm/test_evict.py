"""Whom eviction takes: by priority, age and pins, one after the other; what becomes of the space meanwhile."""

import errno

import trio
import trio.testing

from tests.core.harness import MIB, PAGE, check, device, fails, idle, lru_names, make, move
from ttmfs.driver import calls
from ttmfs.sync.fence import Timeline
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.resource import NUM_MOVE_FENCES


async def test_priority_first_then_age_and_pinned_ones_are_on_no_list() -> None:
    async with device() as vdev:
        bos = {name: await make(vdev, name, place="vram") for name in "abcd"}
        bos["a"].priority = 3
        bos["a"].relist()
        bos["d"].priority = 0
        bos["d"].relist()
        bos["b"].pin()
        assert lru_names(vdev, "vram") == ["d", "c", "a"]
        for number, gone in enumerate("dca"):
            await make(vdev, f"new{number}", place="vram:desired vram")
            assert bos[gone].mem_type == "gtt", gone
            for item in list(vdev.ttm.managers["vram"].lru):
                if item.bo.name.startswith("new"):
                    item.bo.pin()
        assert bos["b"].mem_type == "vram"
        for bo in bos.values():
            await check(bo)


async def test_the_allocation_is_tried_after_each_victim() -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"v{n}", place="vram") for n in range(4)]
        result = await move(vdev, await make(vdev, "new", 2 * MIB), "vram")
        assert result["evictions"] == 2
        assert [bo.mem_type for bo in bos] == ["gtt", "gtt", "vram", "vram"]


async def test_small_ones_may_go_in_vain() -> None:
    async with device() as vdev:
        small = await make(vdev, "small", 64 * PAGE, place="vram@0-63")
        blocker = await make(vdev, "blocker", 64 * PAGE, place="vram@64-127")
        blocker.pin()
        with fails(errno.ENOMEM):
            await move(vdev, await make(vdev, "big", 128 * PAGE), "vram@0-127")
        assert small.mem_type == "gtt"
        await check(small)


async def test_no_wait_gpu_skips_busy_victims_and_busy_places() -> None:
    async with device() as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        await idle(victim)
        vdev.engines[0].paused = True
        bo = await make(vdev, "b", place="gtt")
        await move(vdev, victim, "gtt")
        # The space of an ordinary move belongs to a ghost until the copy is done.
        with fails(errno.ENOMEM):
            await move(vdev, bo, "vram", no_wait_gpu=True)
        with fails(errno.EBUSY):
            await move(vdev, victim, "system", no_wait_gpu=True)
        vdev.engines[0].paused = False
        await idle(victim)
        await move(vdev, bo, "vram", no_wait_gpu=True)
        assert bo.mem_type == "vram"


async def test_a_deleted_busy_bo_keeps_its_space_until_evicted_or_idle() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        await idle(bo)
        timeline = Timeline("job")
        fence = timeline.next_fence("job")
        await bo.resv.lock()
        bo.resv.reserve_fences(1)
        bo.resv.add_fence(fence, Usage.READ)
        bo.unreserve()
        vram = vdev.ttm.managers["vram"]
        lifetime.release(bo)
        assert (vdev.ttm.num_zombies, vram.usage) == (1, 4 * MIB)
        new = await make(vdev, "new")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, vdev, new, "vram")
            await trio.testing.wait_all_tasks_blocked()
            assert new.mem_type == "system"
            fence.signal()
        assert new.mem_type == "vram"
        assert vdev.ttm.num_zombies == 0


async def test_pipelined_eviction_frees_at_once_and_hands_the_fence_on() -> None:
    async with device(copy_engines=2) as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        new = await make(vdev, "new", place="gtt")
        await idle(victim, new)
        for engine in vdev.engines:
            engine.paused = True
        await calls.evict_one(vdev, victim, OperationContext())
        assert vdev.ttm.managers["vram"].usage == 0
        pending = victim.moving_fence()
        assert pending is not None
        await move(vdev, new, "vram")
        assert pending in new.resv.get_fences(Usage.KERNEL)
        for engine in vdev.engines:
            engine.paused = False
        await check(new)
        await check(victim)


async def test_a_ninth_context_is_waited_for() -> None:
    async with device() as vdev:
        vram = vdev.ttm.managers["vram"]
        fences = [Timeline(f"t{n}").next_fence() for n in range(NUM_MOVE_FENCES)]
        assert all(vram.add_eviction_fence(fence) for fence in fences)
        bo = await make(vdev, "a")
        ninth = Timeline("t9").next_fence()
        assert not vram.add_eviction_fence(ninth)
        fences[3].signal()
        assert vram.add_eviction_fence(ninth)
        for fence in (*fences, ninth):
            fence.signal()
        await move(vdev, bo, "vram")
        await check(bo)


async def test_an_evicted_purgeable_bo_loses_its_content_and_moves_no_byte() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        bo.madvise = "dontneed"
        new = await make(vdev, "new")
        result = await move(vdev, new, "vram")
        assert result["bytes_moved"] == 2 * MIB
        assert (bo.evictions, bo.resource) == (1, None)
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)


async def test_evict_from_system_moves_nothing_but_purges_what_is_not_needed() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        assert (await calls.evict_one(vdev, bo, OperationContext()))["bytes_moved"] == 0
        await check(bo)
        bo.madvise = "dontneed"
        await calls.evict_one(vdev, bo, OperationContext())
        assert vdev.pool.in_use_pages == 0
