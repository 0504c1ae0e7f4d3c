"""Clears of VRAM: only what is dirty, no byte of who had it before, and in the background while nothing is wanted."""

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, device, idle, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.sync.fence import Fence
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.clear import Clear
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.managers import BuddyManager


async def fresh(vdev: VirtualDevice, name: str, size: int) -> BufferObject:
    """A BO without content, in VRAM."""
    bo = vdev.create_bo(name)
    set_size(bo, size)
    await move(vdev, bo, "vram")
    await idle(bo)
    assert bytes(await access.read(bo, 0, size)) == bytes(size)
    return bo


def region(vdev: VirtualDevice) -> BuddyManager:
    manager = vdev.ttm.managers["vram"]
    assert isinstance(manager, BuddyManager)
    return manager


def check_zeros(vdev: VirtualDevice) -> None:
    """What the region calls zero is."""
    manager = region(vdev)
    assert manager.arena is not None
    free = np.flatnonzero(manager.buddy.free_map())
    clear = free[~manager.buddy.dirty_of(free)]
    assert len(clear) == manager.buddy.clear_free_pages
    assert not manager.arena.mem[clear].any()


async def test_a_first_bo_costs_no_clear_and_the_next_one_only_what_is_dirty() -> None:
    async with device(vram=64 * MIB, gtt=64 * MIB, memory=128 * MIB) as vdev:
        moves = vdev.ttm.counters.moves
        first = await fresh(vdev, "first", 48 * MIB)
        assert moves.cleared == 0
        release(first)
        assert region(vdev).buddy.clear_free_pages == 16 * MIB // PAGE
        check_zeros(vdev)
        await fresh(vdev, "second", 64 * MIB)
        assert moves.cleared == 48 * MIB
        assert region(vdev).buddy.clear_free_pages == 0


async def test_nobody_reads_what_another_one_left() -> None:
    async with device(vram=8 * MIB) as vdev:
        for n in range(4):
            bo = await make(vdev, f"b{n}", (1 + n) * MIB, place="vram")
            await idle(bo)
            assert bytes(await access.read(bo, 0, bo.size)) == pattern(f"b{n}", bo.size)
            release(bo)
            check_zeros(vdev)
            release(await fresh(vdev, f"f{n}", (8 - n) * MIB))


@pytest.mark.parametrize("error", ["the engine fails", "it works"])
async def test_a_clear_that_fails_half_way_is_done_anew(error: str) -> None:
    async with device(vram=4 * MIB) as vdev:
        bo = await make(vdev, "a", 3 * MIB, place="vram")
        await idle(bo)
        release(bo)
        fail = vdev.ttm.inject["engine"]
        fail.probability, fail.times = 100 * (error == "the engine fails"), 1
        await fresh(vdev, "b", 4 * MIB)
        assert sum(engine.cpu_copies for engine in vdev.engines) == (error == "the engine fails")


async def test_what_was_freed_is_cleared_while_nobody_wants_anything(autojump_clock: MockClock) -> None:
    async with device(vram=8 * MIB) as vdev:
        bo = await make(vdev, "a", 6 * MIB, place="vram")
        await idle(bo)
        release(bo)
        buddy = region(vdev).buddy
        assert buddy.clear_free_pages == 2 * MIB // PAGE
        with trio.fail_after(30):
            while buddy.clear_free_pages < buddy.num_pages:
                await trio.sleep(0.1)
        check_zeros(vdev)
        await fresh(vdev, "b", 8 * MIB)
        assert vdev.ttm.counters.moves.cleared == 0


async def test_memory_that_a_copy_still_reads_is_not_cleared(autojump_clock: MockClock) -> None:
    """A pipelined eviction frees the space before its bytes have gone."""
    async with device(vram=4 * MIB, copy_latency=5.0) as vdev:
        bo = await make(vdev, "a", 4 * MIB, place="vram")
        await idle(bo)
        await calls.evict_one(vdev, bo, OperationContext())
        await trio.sleep(4)
        assert region(vdev).usage == 0
        assert not bo.resv.test_signaled(Usage.BOOKKEEP)
        assert region(vdev).buddy.clear_free_pages == 0
        await idle(bo)
        assert bytes(await access.read(bo, 0, bo.size)) == pattern("a", bo.size)
        await trio.sleep(10)
        assert region(vdev).buddy.clear_free_pages == region(vdev).num_pages
        check_zeros(vdev)


async def test_a_clear_looks_at_so_much_in_one_step() -> None:
    async with device(vram=2 << 30, gtt=2 << 30, swap=0) as vdev:
        bo = vdev.create_bo("a")
        set_size(bo, 2 << 30)
        await move(vdev, bo, "vram")
        await idle(bo)
        assert bo.resource is not None
        clear = Clear(bo.resource, Fence(4711, 1, "a clear"))
        steps = []
        index = 0
        while index < clear.num_pages:
            steps.append(clear.next_to_move(index) - index)
            index += steps[-1]
        assert max(steps) <= 1 << 16
        assert len(steps) > 1
