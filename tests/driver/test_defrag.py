"""Defrag of one BO: fresh pages at the beneficial order, or everything as it was and nobody the wiser."""

import errno
import random
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio

from tests.driver.conftest import MakeDevice
from tests.driver.defrag_tools import MIB, content, defrag, entries_of, hog, orders, pages_of_bo, scattered
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.policy import DefaultDriver
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.copy import CopyState
from ttmfs.ttm.funcs import Multihop
from ttmfs.ttm.placement import GTT, Place, PlaceFlag
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.ttm.validate import validate
from ttmfs.units import PAGE_SIZE


class CountingUnmapper:
    """Counts INVALs, and may act while one is outstanding."""

    def __init__(self) -> None:
        self.calls = 0
        self.during: Callable[[BufferObject], Awaitable[None]] | None = None

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.calls += 1
        if self.during is not None:
            during, self.during = self.during, None
            await during(bo)


def watch(vdev: VirtualDevice) -> CountingUnmapper:
    vdev.ttm.unmapper = CountingUnmapper()
    return vdev.ttm.unmapper


@pytest.mark.parametrize("place", ["system", "gtt"])
async def test_scattered_pages_become_blocks_of_the_beneficial_order(device: MakeDevice, place: str) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 6 * MIB, place)
        assert orders(bo) == {0: 1536}
        assert bo.tt is not None
        assert bo.tt.beneficial_order_failed
        assert bo in vdev.ttm.defrag_list
        result = await defrag(vdev, bo)
        assert result["moved"] == 1
        assert result["bytes_moved"] == 6 * MIB
        assert result["mem_type"] == bo.mem_type == place
        await bo.resv.wait(Usage.BOOKKEEP)
        assert sum(count << order for order, count in orders(bo).items() if order >= 9) == 1536
        assert bo.tt is not None
        assert not bo.tt.beneficial_order_failed
        assert bo not in vdev.ttm.defrag_list
        assert await content(bo) == data
        assert vdev.pool.in_use_pages == 1536
        assert vdev.ttm.num_ghosts == 0
        assert vdev.selfcheck() == []


async def test_tails_and_sparse_pieces_keep_their_shape(device: MakeDevice) -> None:
    async with device() as vdev:
        others = hog(vdev)
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, 7 * MIB)
        bo.prefault = 0
        model = bytearray(7 * MIB)
        for first, size in ((0, 2 * MIB), (2 * MIB + 8192, 12288), (4 * MIB, 2 * MIB), (6 * MIB, MIB)):
            part = random.Random(first).randbytes(size)
            await access.write(bo, first, part)
            model[first : first + size] = part
        vdev.pool.free(others, to_pool=False)
        shape = bo.snapshot()
        assert (await defrag(vdev, bo))["moved"] == 1
        await bo.resv.wait(Usage.BOOKKEEP)
        assert bo.snapshot() == shape
        assert sum(count << order for order, count in orders(bo).items() if order >= 9) == 1024
        assert await content(bo) == bytes(model)


async def test_the_old_backing_is_freed_only_after_the_fence(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        old = pages_of_bo(bo)
        vdev.engines[0].paused = True
        result = await defrag(vdev, bo)
        assert "fence" in result
        assert vdev.pool.in_use_pages == 2048, "both are there"
        assert vdev.ttm.num_ghosts == 1
        assert not np.intersect1d(old, pages_of_bo(bo)).size
        patch = b"x" * 9000
        await access.write(bo, 5000, patch)
        vdev.engines[0].paused = False
        await bo.resv.wait(Usage.KERNEL)
        assert vdev.pool.in_use_pages == 1024
        assert vdev.ttm.num_ghosts == 0
        assert await content(bo) == data[:5000] + patch + data[14000:]


async def test_freed_fragments_go_past_the_pool_and_show_no_old_bytes(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, _data = await scattered(vdev, "a", 4 * MIB)
        old = pages_of_bo(bo)
        await defrag(vdev, bo)
        await bo.resv.wait(Usage.BOOKKEEP)
        assert vdev.pool.pooled_pages == 0
        got = vdev.pool.alloc(vdev.pool.free_pages)
        mine = np.intersect1d(got.pages, old)
        assert mine.size
        assert not vdev.pool.arena.mem[mine].any()
        vdev.pool.free(got.pages)


BEFORE_UNMAP = ("tt_create", "page_alloc", "fence_slot")
AFTER_UNMAP = ("move",)


@pytest.mark.parametrize("place", ["system", "gtt"])
@pytest.mark.parametrize("where", [*BEFORE_UNMAP, "unmap", *AFTER_UNMAP, "order"])
async def test_every_failure_leaves_tt_placement_and_content(device: MakeDevice, where: str, place: str) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB, place)
        await content(bo)
        unmapper = watch(vdev)
        tt, resource, vector = bo.tt, bo.resource, entries_of(bo)
        others = hog(vdev) if where == "order" else None
        in_use = vdev.pool.in_use_pages
        if others is None:
            vdev.ttm.inject[where].probability = 100
            vdev.ttm.inject[where].times = 1
            # Locking the BO and allocating its resource reserve slots too, before the tt is made.
            vdev.ttm.inject[where].interval = 3 if where == "fence_slot" else 1
        allocs = vdev.pool.statistics()["allocs"]
        with pytest.raises(TtmError):
            await defrag(vdev, bo)
        assert unmapper.calls == (where in AFTER_UNMAP)
        populated = where in ("fence_slot", "unmap", "move")
        assert (vdev.pool.statistics()["allocs"] > allocs) == populated
        assert bo.tt is tt
        assert bo.defrag_old_tt is None
        assert (entries_of(bo) == vector).all()
        assert bo.mem_type == place
        assert bo.resource is resource
        assert not bo.copies
        assert vdev.pool.in_use_pages == in_use
        assert bo.pages_moved * PAGE_SIZE == (4 * MIB if place == "gtt" else 0), "counted on success only"
        assert bo in vdev.ttm.defrag_list
        assert vdev.ttm.defrag_list.failed == 1
        assert await content(bo) == data
        if others is not None:
            vdev.pool.free(others, to_pool=False)
        assert (await defrag(vdev, bo))["moved"] == 1
        assert await content(bo) == data
        assert vdev.selfcheck() == []


class HopsOnce(DefaultDriver):
    hops = 1

    async def move(
        self, bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool, source: TT | None = None
    ) -> None:
        if source is not None and self.hops:
            self.hops -= 1
            raise Multihop((Place(GTT, flags=PlaceFlag.TEMPORARY),))
        await super().move(bo, resource, ctx, evict=evict, source=source)


@pytest.mark.parametrize("room", [True, False])
async def test_multihop_restores_like_any_failure(device: MakeDevice, room: bool) -> None:
    async with device(gtt=64 * MIB if room else 2 * MIB) as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        bo.funcs = HopsOnce(vdev)
        tt, vector = bo.tt, entries_of(bo)
        if not room:
            with pytest.raises(TtmError) as failure:
                await defrag(vdev, bo)
            assert failure.value.errno == errno.ENOMEM
            assert bo.tt is tt
            assert (entries_of(bo) == vector).all()
            assert vdev.pool.in_use_pages == 1024
        else:
            assert (await defrag(vdev, bo))["moved"] == 1
            await bo.resv.wait(Usage.BOOKKEEP)
            assert orders(bo) == {10: 1} or orders(bo) == {9: 2}
        assert bo.mem_type == "system"
        assert bo.defrag_old_tt is None
        assert await content(bo) == data
        assert vdev.ttm.managers["gtt"].usage == 0


async def test_an_engine_failure_is_copied_by_the_cpu_and_a_banned_one_is_loud(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        vdev.ttm.inject["engine"].probability = 100
        await defrag(vdev, bo)
        await bo.resv.wait(Usage.KERNEL)
        assert vdev.engines[0].cpu_copies == 1
        assert await content(bo) == data
        vdev.ttm.inject["engine"].times = 1
        vdev.ttm.inject.ban_memcpy = True
        await defrag(vdev, bo)
        await bo.resv.wait(Usage.KERNEL)
        assert bo.unknown_state
        with pytest.raises(TtmError) as failure:
            await content(bo)
        assert failure.value.errno == errno.EIO


@pytest.mark.parametrize("options", [{"sync_moves": True}, {}])
@pytest.mark.parametrize("where", [None, "ghost", "work_alloc"])
async def test_synchronous_ways_of_the_move_free_the_old_pages(
    device: MakeDevice, options: dict[str, Any], where: str | None
) -> None:
    async with device(**options) as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        if where:
            vdev.ttm.inject[where].probability = 100
        await defrag(vdev, bo)
        await bo.resv.wait(Usage.BOOKKEEP)
        assert vdev.pool.in_use_pages == 1024
        assert bo.defrag_old_tt is None
        assert await content(bo) == data


async def test_holes_that_are_filled_during_the_inval_are_carried_along(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 2 * MIB)
        lifetime.set_size(bo, 4 * MIB)
        unmapper = watch(vdev)

        async def during(bo: BufferObject) -> None:
            assert bo.defrag_old_tt is None, "nothing is committed while the INVAL is outstanding"
            await access.write(bo, 3 * MIB, b"y" * 5000)
            assert bytes(await access.read(bo, 2 * MIB, 4096)) == bytes(4096)
            await access.write(bo, 100, b"z")
            await access.write(bo, 4 * MIB, b"grown")

        unmapper.during = during
        bo.handed_out = True
        await defrag(vdev, bo)
        assert unmapper.calls == 1
        model = bytearray(4 * MIB + 5)
        model[: 2 * MIB] = data
        model[100] = ord("z")
        model[3 * MIB : 3 * MIB + 5000] = b"y" * 5000
        model[4 * MIB :] = b"grown"
        assert await content(bo) == bytes(model)
        assert vdev.selfcheck() == []


async def test_enomem_at_the_commit_restores(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 2 * MIB)
        lifetime.set_size(bo, 4 * MIB)
        unmapper = watch(vdev)
        held = []

        async def during(bo: BufferObject) -> None:
            await access.write(bo, 3 * MIB, b"y" * 5000)
            held.append(vdev.pool.alloc(vdev.pool.free_pages, zero=False).pages)

        unmapper.during = during
        bo.handed_out = True
        tt = bo.tt
        with pytest.raises(TtmError) as failure:
            await defrag(vdev, bo)
        assert failure.value.errno == errno.ENOMEM
        assert bo.tt is tt
        vdev.pool.free(held[0], to_pool=False)
        assert (await content(bo))[: 2 * MIB] == data
        assert (await content(bo))[3 * MIB : 3 * MIB + 5000] == b"y" * 5000


@pytest.mark.parametrize("unmapping", [False, True])
async def test_a_write_to_a_hole_of_a_queued_copy_is_kept(device: MakeDevice, unmapping: bool) -> None:
    async with device(fault_timeout=5.0) as vdev:
        bo, data = await scattered(vdev, "a", 2 * MIB)
        lifetime.set_size(bo, 4 * MIB)
        vdev.engines[0].paused = True
        await defrag(vdev, bo)
        assert bo.copies[0].state is CopyState.QUEUED
        async with trio.open_nursery() as nursery:
            with trio.fail_after(4):
                nursery.start_soon(access.write, bo, 3 * MIB, b"h" * 5000)
                await trio.testing.wait_all_tasks_blocked()
                assert vdev.ttm.counters.requests.parked, "it waits for the copy, without spinning"
                if unmapping:
                    unmapper = watch(vdev)
                    bo.handed_out = True
                    await calls.unmap(vdev, bo, 0, 0)
                    assert unmapper.calls == 1
                    await trio.testing.wait_all_tasks_blocked()
                    bo.gate.begin_unmapping()
                    with trio.fail_after(2):
                        while vdev.ttm.counters.requests.parked:
                            await trio.lowlevel.checkpoint()
                    bo.gate.end_unmapping()
                    assert bo.copies
                vdev.engines[0].paused = False
        assert await content(bo) == data + bytes(MIB) + b"h" * 5000 + bytes(MIB - 5000)


async def test_a_truncate_while_the_copy_is_queued(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        vdev.engines[0].paused = True
        await defrag(vdev, bo)
        lifetime.set_size(bo, 3 * MIB + 100)
        lifetime.set_size(bo, 4 * MIB)
        vdev.engines[0].paused = False
        assert await content(bo) == data[: 3 * MIB + 100] + bytes(MIB - 100)


async def test_a_chain_of_moves_behind_a_defrag(device: MakeDevice) -> None:
    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        vdev.engines[0].paused = True
        await defrag(vdev, bo)
        await defrag(vdev, bo)
        for place in ("vram", "gtt"):
            await calls.validate_bo(vdev, bo, vdev.parse_placement([place]), OperationContext())
        await defrag(vdev, bo)
        assert len(bo.copies) == 5
        await access.write(bo, 4096, b"w" * 4096)
        vdev.engines[0].paused = False
        assert await content(bo) == data[:4096] + b"w" * 4096 + data[8192:]
        await bo.resv.wait(Usage.BOOKKEEP)
        assert vdev.pool.in_use_pages == 1024


async def test_nothing_to_gain_is_success_with_nothing_moved(device: MakeDevice) -> None:
    async with device(swap=16 * MIB) as vdev:
        unmapper = watch(vdev)
        empty = vdev.create_bo("empty")
        lifetime.set_size(empty, 8 * MIB)
        small, _ = await scattered(vdev, "small", MIB)
        swapped, data = await scattered(vdev, "swapped", 2 * MIB)
        await calls.swapout_one(vdev, swapped, OperationContext())
        sparse = vdev.create_bo("sparse")
        await access.write(sparse, 4 * MIB + 5, b"x")
        for bo in (empty, small, swapped, sparse):
            bo.handed_out = True
            calls_before = unmapper.calls
            result = await defrag(vdev, bo)
            assert (result["moved"], result["bytes_moved"]) == (0, 0)
            assert unmapper.calls == calls_before
            assert bo not in vdev.ttm.defrag_list
        assert await content(swapped) == data


async def test_the_beneficial_order_off_moves_nothing(device: MakeDevice) -> None:
    async with device(beneficial_order=0) as vdev:
        bo, _ = await scattered(vdev, "a", 4 * MIB)
        assert bo.tt is not None
        assert not bo.tt.beneficial_order_failed
        assert (await defrag(vdev, bo))["moved"] == 0


async def test_pinned_is_einval(device: MakeDevice) -> None:
    async with device() as vdev:
        for bo in ((await scattered(vdev, "a", 4 * MIB))[0], vdev.create_bo("empty")):
            bo.pin()
            with pytest.raises(TtmError) as failure:
                await defrag(vdev, bo)
            assert failure.value.errno == errno.EINVAL
            await bo.resv.lock()
            with pytest.raises(TtmError) as failure:
                await validate(bo, (Place("system"),), OperationContext(defrag=True))
            bo.unlock()
            assert failure.value.errno == errno.EINVAL


async def test_victims_of_a_defrag_are_moved_not_defragmented(device: MakeDevice) -> None:
    async with device(gtt=8 * MIB) as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB, "gtt")
        victim, victim_data = await scattered(vdev, "v", 4 * MIB, "gtt", seed=2)
        old_pages = pages_of_bo(victim)
        result = await defrag(vdev, bo)
        assert result["moved"] == 1
        assert victim.mem_type == "system"
        assert (pages_of_bo(victim) == old_pages).all()
        assert await content(bo) == data
        assert await content(victim) == victim_data


async def test_a_scattered_vram_bo_becomes_one_run(device: MakeDevice) -> None:
    async with device(vram=16 * MIB) as vdev:
        spacers = []
        for n in range(16):
            spacer = vdev.create_bo(f"s{n}")
            lifetime.set_size(spacer, MIB)
            await calls.validate_bo(vdev, spacer, (Place("vram", n * 256, n * 256 + 256),), OperationContext())
            spacers.append(spacer)
        for spacer in spacers[:8:2]:
            lifetime.release(spacer)
        await trio.testing.wait_all_tasks_blocked()
        bo = vdev.create_bo("a")
        data = random.Random(5).randbytes(4 * MIB)
        await access.write(bo, 0, data)
        await calls.validate_bo(vdev, bo, vdev.parse_placement(["vram"]), OperationContext())
        assert bo.resource is not None
        assert bo.resource.start < 0, "it is scattered"
        for spacer in spacers[8:]:
            lifetime.release(spacer)
        await bo.resv.wait(Usage.BOOKKEEP)
        await trio.testing.wait_all_tasks_blocked()
        result = await defrag(vdev, bo)
        assert result["moved"] == 1
        assert bo.mem_type == "vram"
        assert bo.resource is not None
        assert bo.resource.start >= 0
        assert await content(bo) == data
        assert (await defrag(vdev, bo))["moved"] == 0
        assert bo.num_pages * PAGE_SIZE == 4 * MIB
