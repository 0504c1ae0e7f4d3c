"""A WRITE that comes in the very step in which a copy ends goes to where the bytes are from then on."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from tests.core.harness import MIB, PAGE, check, device, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.sync.fence import Fence
from ttmfs.ttm import access, at_once
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.resource import NUM_MOVE_FENCES

NEW = b"written in between" * 100


async def _with_a_write_at_the_end(vdev: VirtualDevice, bo: BufferObject, how: str) -> None:
    """Make the call, and have a client write in the step in which its copy ends."""
    wrote = []

    def write(_fence: Fence) -> None:
        # What handles a WRITE is a task that runs in the same turn of the loop: here, before all others.
        if not bo.copies:
            wrote.append(at_once.try_write(bo, 3 * PAGE + 5, NEW))

    async with trio.open_nursery() as nursery:
        if how == "evict":
            nursery.start_soon(partial(calls.evict_one, vdev, bo, OperationContext()))
        else:
            nursery.start_soon(partial(move, vdev, bo, how))
        with trio.fail_after(5):
            while not bo.copies:
                await trio.sleep(0.0001)
        bo.copies[-1].fence.add_callback(write)
    with trio.fail_after(5):
        while not wrote:
            await trio.sleep(0.001)
    assert wrote == [True], "the WRITE was not served in this step: the test tests nothing"


async def _right(vdev: VirtualDevice, bo: BufferObject) -> None:
    wanted = bytearray(pattern(bo.name, bo.size))
    wanted[3 * PAGE + 5 : 3 * PAGE + 5 + len(NEW)] = NEW
    assert bytes(await access.read(bo, 0, bo.size)) == wanted, "the WRITE is lost"
    await move(vdev, bo, "vram")
    assert bytes(await access.read(bo, 0, bo.size)) == wanted


@pytest.mark.parametrize("how", ["gtt", "evict", "vram@512-1023"])
@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("place", ["", "ghost", "work_alloc"])
async def test_no_write_is_lost(autojump_clock: MockClock, how: str, sync: bool, place: str) -> None:
    async with device(copy_latency=0.01, sync_moves=sync) as vdev:
        bo = await make(vdev, "a", MIB, place="vram@0-511")
        await check(bo)
        if place:
            vdev.ttm.inject[place].probability = 100
        await _with_a_write_at_the_end(vdev, bo, how)
        await _right(vdev, bo)


async def test_no_write_is_lost_when_an_eviction_finds_no_slot_for_its_fence(autojump_clock: MockClock) -> None:
    async with device(copy_latency=0.01) as vdev:
        bo = await make(vdev, "a", MIB, place="vram")
        await check(bo)
        manager = vdev.ttm.managers["vram"]
        others = [Fence(1000 + number, 1, "another engine's") for number in range(NUM_MOVE_FENCES)]
        assert all(manager.add_eviction_fence(fence) for fence in others)
        used = manager.usage
        await _with_a_write_at_the_end(vdev, bo, "evict")
        # It was waited for instead: the space is free when the call returns.
        assert manager.usage == used - MIB
        for fence in others:
            fence.signal()
        await _right(vdev, bo)
