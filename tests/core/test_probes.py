"""Behaviours that are easy to get wrong: the probe checklist of the TTM reference, those that have a meaning here."""

import errno

import pytest
import trio
import trio.testing

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, idle, lru_names, make, move
from ttmfs.driver import calls
from ttmfs.errors import TtmError
from ttmfs.sync.exec import Exec
from ttmfs.sync.fence import Timeline
from ttmfs.sync.resv import AcquireContext, Reservation, Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.fault import default_fault
from ttmfs.ttm.funcs import FaultFlag, FaultResult, VmFault
from ttmfs.ttm.lru import LruBulkMove
from ttmfs.ttm.resource import NUM_MOVE_FENCES


def _error(code: int) -> "pytest.RaisesExc[TtmError]":
    return pytest.raises(TtmError, check=lambda error: error.errno == code)


async def test_probe_01_no_placement_guts_and_a_pinned_bo_is_refused() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        bo.pin()
        with _error(errno.EINVAL):
            await move(vdev, bo, "none")
        await check(bo)
        bo.unpin()
        await move(vdev, bo, "none")
        assert bo.resource is None
        assert vdev.ttm.managers["vram"].usage == 0
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)


async def test_probe_01_gutting_many_is_all_or_none() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        b.pin()
        with _error(errno.EINVAL):
            await calls.validate_many(vdev, [a, b], (), OperationContext())
        await check(a)
        await check(b)


async def test_probe_02_a_region_that_the_device_has_not_is_enomem() -> None:
    async with device(vram=0) as vdev:
        bo = await make(vdev, "a")
        with _error(errno.ENOMEM):
            await move(vdev, bo, "vram")
        with _error(errno.EINVAL):
            await move(vdev, bo, "moon")
        await check(bo)


@pytest.mark.parametrize(("propagate", "code"), [(False, errno.ENOMEM), (True, errno.ENOSPC)])
async def test_probe_03_full_is_enomem_or_enospc(propagate: bool, code: int) -> None:
    async with device(propagate_enospc=propagate) as vdev:
        pinned = await make(vdev, "a", 4 * MIB, place="vram")
        pinned.pin()
        bo = await make(vdev, "b")
        with _error(code):
            await move(vdev, bo, "vram")
        assert bo.mem_type == "system"


async def test_probe_03_a_full_hop_is_translated_too() -> None:
    async with device(gtt=MIB) as vdev:
        blocker = await make(vdev, "a", MIB, place="gtt")
        blocker.pin()
        bo = await make(vdev, "b")
        with _error(errno.ENOMEM):
            await move(vdev, bo, "vram")
        await check(bo)


async def test_probe_04_desired_never_evicts_and_fallback_waits_for_the_second_pass() -> None:
    async with device() as vdev:
        old = await make(vdev, "old", 4 * MIB, place="vram")
        new = await make(vdev, "new")
        await move(vdev, new, "vram:desired gtt:fallback")
        assert (old.mem_type, new.mem_type) == ("vram", "gtt")
        assert old.evictions == 0
        other = await make(vdev, "other")
        # gtt is free, yet FALLBACK is no place of the first pass, and vram has room then.
        await move(vdev, old, "system")
        await idle(old)
        await move(vdev, other, "gtt:fallback vram")
        assert other.mem_type == "vram"


async def test_probe_04_a_place_that_can_never_hold_it_evicts_nobody() -> None:
    async with device(visible_vram=MIB) as vdev:
        small = [await make(vdev, f"s{n}", place="vram") for n in range(4)]
        big = await make(vdev, "big", 5 * MIB)
        await move(vdev, big, "vram gtt")
        assert big.mem_type == "gtt"
        await move(vdev, big, "system")
        await move(vdev, big, "gtt@0-9 vram@0-99 gtt")
        assert big.mem_type == "gtt"
        assert [bo.evictions for bo in small] == [0, 0, 0, 0]


async def test_probe_05_a_compatible_validate_moves_and_bumps_nothing_but_unreserve_bumps() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a", place="vram"), await make(vdev, "b", place="vram")
        assert lru_names(vdev, "vram") == ["a", "b"]
        ticket_free = vdev.ttm.managers["vram"].lru.steps
        await a.resv.lock()
        assert vdev.ttm.managers["vram"].lru.steps == ticket_free
        a.unlock()
        assert lru_names(vdev, "vram") == ["a", "b"]
        result = await move(vdev, a, "vram gtt")
        assert result["bytes_moved"] == 0
        assert lru_names(vdev, "vram") == ["b", "a"]
        assert b.moves == a.moves == 2


async def test_probe_06_temporary_is_never_compatible() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="gtt:temporary")
        moves = bo.moves
        await move(vdev, bo, "gtt:temporary")
        assert bo.moves == moves + 1


async def test_probe_07_each_leg_counts_and_gutting_counts_nothing() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        assert (await move(vdev, bo, "vram"))["bytes_moved"] == 2 * MIB
        assert (await move(vdev, bo, "gtt"))["bytes_moved"] == MIB
        assert (await move(vdev, bo, "none"))["bytes_moved"] == 0


async def test_probe_08_priority_first_then_age_and_pinned_ones_are_on_no_list() -> None:
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


async def test_probe_09_the_allocation_is_tried_after_each_victim() -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"v{n}", place="vram") for n in range(4)]
        result = await move(vdev, await make(vdev, "new", 2 * MIB), "vram")
        assert result["evictions"] == 2
        assert [bo.mem_type for bo in bos] == ["gtt", "gtt", "vram", "vram"]


async def test_probe_09_small_ones_may_go_in_vain() -> None:
    async with device() as vdev:
        small = await make(vdev, "small", 64 * PAGE, place="vram@0-63")
        blocker = await make(vdev, "blocker", 64 * PAGE, place="vram@64-127")
        blocker.pin()
        with _error(errno.ENOMEM):
            await move(vdev, await make(vdev, "big", 128 * PAGE), "vram@0-127")
        assert small.mem_type == "gtt"
        await check(small)


async def test_probe_10_no_wait_gpu_skips_busy_victims_and_busy_places() -> None:
    async with device() as vdev:
        victim = await make(vdev, "victim", 4 * MIB, place="vram")
        await idle(victim)
        vdev.engines[0].paused = True
        bo = await make(vdev, "b", place="gtt")
        await move(vdev, victim, "gtt")
        # The space of an ordinary move belongs to a ghost until the copy is done.
        with _error(errno.ENOMEM):
            await move(vdev, bo, "vram", no_wait_gpu=True)
        with _error(errno.EBUSY):
            await move(vdev, victim, "system", no_wait_gpu=True)
        vdev.engines[0].paused = False
        await idle(victim)
        await move(vdev, bo, "vram", no_wait_gpu=True)
        assert bo.mem_type == "vram"


async def test_probe_12_no_wait_with_a_ticket_is_always_ebusy() -> None:
    resv = Reservation()
    with _error(errno.EBUSY):
        await resv.reserve(no_wait=True, ticket=AcquireContext())


async def test_probe_13_only_the_younger_dies_and_then_takes_the_contended_one_first() -> None:
    a, b = Reservation(), Reservation()
    order: list[str] = []
    both = trio.Event()

    async def older() -> None:
        async with Exec[Reservation]() as execution:
            async for attempt in execution.until_all_locked():
                with attempt:
                    await execution.lock(a)
                    both.set()
                    await trio.testing.wait_all_tasks_blocked()
                    await execution.lock(b)
            assert execution.restarts == 0
            order.append("older")

    async def younger() -> None:
        await both.wait()
        async with Exec[Reservation]() as execution:
            async for attempt in execution.until_all_locked():
                with attempt:
                    await execution.lock(b)
                    await execution.lock(a)
            assert execution.restarts == 1
            assert execution.objects[0] is a
            order.append("younger")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(older)
            nursery.start_soon(younger)
    assert order == ["older", "younger"]


async def test_probe_14_pin_does_nothing_else_and_unpin_is_balanced() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, MIB)
        bo.pin()
        assert bo.tt is None or not bo.tt.populated_pages
        assert bo.moves == 0
        bo.unpin()
        with _error(errno.EINVAL):
            bo.unpin()
        bo.pin()
        lifetime.release(bo)
        assert bo.pin_count == 0
        assert vdev.ttm.num_bos == 0


async def test_probe_15_a_deleted_busy_bo_keeps_its_space_until_evicted_or_idle() -> None:
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


async def test_probe_16_pipelined_eviction_frees_at_once_and_hands_the_fence_on() -> None:
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


async def test_probe_17_a_ninth_context_is_waited_for() -> None:
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


async def test_probe_18_and_37_ghosts_own_the_old_space_count_as_bos_and_vanish() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        await idle(bo)
        vdev.engines[0].paused = True
        await move(vdev, bo, "gtt")
        assert (vdev.ttm.num_ghosts, vdev.ttm.num_bos) == (1, 2)
        assert vdev.ttm.managers["vram"].usage == MIB
        vdev.engines[0].paused = False
        await idle(bo)
        assert (vdev.ttm.num_ghosts, vdev.ttm.num_bos) == (0, 1)
        assert vdev.ttm.managers["vram"].usage == 0


async def test_probe_19_over_the_page_limit_others_are_swapped_out_then_allocated_anyway() -> None:
    async with device(pages_limit=2 * MIB) as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        assert vdev.pool.in_use_pages == 512
        c = await make(vdev, "c")
        assert a.swapped
        assert not b.swapped
        assert vdev.pool.in_use_pages <= 512
        b.pin()
        c.pin()
        d = await make(vdev, "d")
        assert vdev.pool.in_use_pages > 512
        for bo in (a, b, c, d):
            await check(bo)


async def test_probe_26_swapout_and_back() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="gtt")
        result = await calls.swapout_one(vdev, bo, OperationContext())
        assert result["pages_out"] == 256
        assert bo.mem_type == "system"
        assert bo.snapshot() == b"b" * 256
        assert bo.resource is not None
        assert bo.resource.lru_list is vdev.ttm.unevictable
        assert vdev.pool.in_use_pages == 0
        assert (await calls.swapout_one(vdev, bo, OperationContext()))["pages_out"] == 0
        await check(bo)
        assert lru_names(vdev, "system") == ["a"]
        assert vdev.ttm.swap_store is not None
        assert vdev.ttm.swap_store.slots.stored == 0


async def test_probe_27_a_gutted_bo_is_placed_anew_by_its_next_use() -> None:
    async with device(placement="gtt") as vdev:
        bo = await make(vdev, "a")
        assert bo.mem_type == "gtt"
        await move(vdev, bo, "none")
        assert bytes(await access.read(bo, 100, 5000)) == bytes(5000)
        assert bo.mem_type == "gtt"


async def test_probe_28_what_a_fault_answers() -> None:
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


async def test_probe_28_no_memory_is_oom() -> None:
    async with device(memory=8 * MIB, swap=0) as vdev:
        bo = vdev.create_bo("a")
        with _error(errno.ENOMEM):
            await access.write(bo, 0, b"x" * (9 * MIB))


async def test_probe_29_after_unplug_reads_are_zeros_and_writes_are_dropped() -> None:
    from ttmfs.driver.suspend import unplug  # noqa: PLC0415

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
        with _error(errno.ENODEV):
            await move(vdev, bo, "system")


async def test_probe_33_range_manager_topdown_and_bounds() -> None:
    async with device() as vdev:
        low = await make(vdev, "low", place="gtt")
        high = await make(vdev, "high", place="gtt:topdown")
        assert low.resource is not None
        assert high.resource is not None
        assert (low.resource.start, high.resource.start) == (0, 4096 - 256)
        await move(vdev, low, "gtt@512-767")
        assert low.resource.start == 512
        with _error(errno.ENOMEM):
            await move(vdev, low, "gtt@0-254")


async def test_probe_38_a_bulk_moves_as_a_block_and_pinned_or_swapped_members_leave_it() -> None:
    async with device() as vdev:
        shared = Reservation(vdev.ttm.ww_class)
        bulk = LruBulkMove()
        members: list[BufferObject] = []
        for name in "abc":
            bo = BufferObject(vdev.ttm, vdev.funcs, name=name, resv=shared)
            bo.assign(vdev.ttm.managers["system"].alloc(bo, vdev.default_placement[0]))
            bo.placed = True
            await access.write(bo, 0, b"1" * PAGE)
            await bo.resv.lock()
            bo.bulk = bulk
            assert bo.resource is not None
            bulk.add(bo.resource)
            bo.unlock()
            members.append(bo)
        await make(vdev, "other")
        assert lru_names(vdev, "system")[-1] == "other" or bulk.count == 3
        bulk.move_tail()
        a, b, _c = members
        b.pin()
        assert bulk.count == 2
        b.unpin()
        assert bulk.count == 3
        await calls.swapout_one(vdev, a, OperationContext())
        assert bulk.count == 2
        await access.read(a, 0, PAGE)
        assert bulk.count == 3


async def test_probe_38_one_of_a_shared_reservation_is_deleted_on_its_own() -> None:
    async with device() as vdev:
        shared = Reservation(vdev.ttm.ww_class)
        bos = []
        for name in "ab":
            bo = BufferObject(vdev.ttm, vdev.funcs, name=name, resv=shared)
            bo.assign(vdev.ttm.managers["system"].alloc(bo, vdev.default_placement[0]))
            bo.placed = True
            await access.write(bo, 0, b"1" * PAGE)
            bos.append(bo)
        await bos[0].resv.lock()
        lifetime.release(bos[1])
        # Individualised: the deletion does not wait for whoever holds the shared one.
        assert vdev.ttm.num_bos == 1
        bos[0].unlock()


async def test_probe_39_an_evicted_purgeable_bo_loses_its_content_and_moves_no_byte() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        bo.madvise = "dontneed"
        new = await make(vdev, "new")
        result = await move(vdev, new, "vram")
        assert result["bytes_moved"] == 2 * MIB
        assert (bo.evictions, bo.resource) == (1, None)
        assert bytes(await access.read(bo, 0, PAGE)) == bytes(PAGE)


async def test_probe_39_evict_from_system_moves_nothing_but_purges_what_is_not_needed() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        assert (await calls.evict_one(vdev, bo, OperationContext()))["bytes_moved"] == 0
        await check(bo)
        bo.madvise = "dontneed"
        await calls.evict_one(vdev, bo, OperationContext())
        assert vdev.pool.in_use_pages == 0
