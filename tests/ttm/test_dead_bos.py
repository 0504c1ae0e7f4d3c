"""Calls on a BO that is unlinked before they come, while they wait for it, or while they run.

They end with ENOENT or with success, and when the BO is gone every byte is back, in every region, the pool and the
store: nobody would take it back from a BO without a name.
"""

import errno
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.core.harness import MIB, WaitingUnmapper, check, device, make, move, outcome
from tests.core.stores import check_empty
from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.defrag_pass import defrag_pass
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.fs.tree.attributes import set_text
from ttmfs.sync.resv import Usage
from ttmfs.ttm import lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Placement

Call = Callable[[VirtualDevice, BufferObject, BufferObject], Awaitable[object]]


def _places(vdev: VirtualDevice, text: str) -> Placement:
    return vdev.parse_placement(text.split())


ALONE: dict[str, Call] = {
    "validate": lambda vdev, bo, _other: move(vdev, bo, "vram"),
    "gut": lambda vdev, bo, _other: move(vdev, bo, "none"),
    "evict": lambda vdev, bo, _other: calls.evict_one(vdev, bo, OperationContext()),
    "pin": lambda vdev, bo, _other: calls.pin(vdev, bo),
    "unmap": lambda vdev, bo, _other: calls.unmap(vdev, bo, 0, 0),
    "backup": lambda vdev, bo, _other: calls.backup_one(vdev, bo, BackupFlags(allow_move=True), OperationContext()),
    "purge": lambda vdev, bo, _other: calls.backup_one(vdev, bo, BackupFlags(purge=True), OperationContext()),
    "restore": lambda vdev, bo, _other: calls.restore(vdev, bo, OperationContext()),
    "swapout": lambda vdev, bo, _other: calls.swapout_one(vdev, bo, OperationContext()),
    "defrag": lambda vdev, bo, _other: defrag_bo(vdev, bo, OperationContext()),
}
TOGETHER: dict[str, Call] = {
    "validate_many": lambda vdev, bo, other: calls.validate_many(
        vdev, [other, bo], _places(vdev, "vram"), OperationContext()
    ),
    "copy": lambda vdev, bo, other: submit_job(vdev, Job("copy", dst=other, srcs=(bo,)), OperationContext()),
    "fill": lambda vdev, bo, _other: submit_job(vdev, Job("fill", dst=bo, value=7), OperationContext()),
    "busy": lambda vdev, bo, other: submit_job(vdev, Job("busy", srcs=(other, bo), seconds=1), OperationContext()),
}
WAITS: dict[str, Call] = {"wait": lambda vdev, bo, _other: calls.wait_bo(vdev, bo, Usage.BOOKKEEP, 5)}
UNMAPS = ("validate", "gut", "unmap", "backup", "purge", "swapout", "defrag", "validate_many")
"""They wait for an INVAL."""
SETTINGS = {"placement": "vram", "priority": "2", "prefault": "3", "madvise": "dontneed", "caching": "cached"}


async def back(vdev: VirtualDevice, *left: BufferObject) -> None:
    """Every byte is back but those of `left`."""
    for bo in left:
        assert not bo.pin_count
        await bo.resv.wait(Usage.BOOKKEEP)
        lifetime.release(bo)
    while vdev.fence_counters.pending:  # by the fences: the clock jumps while a job is in its thread
        await trio.sleep(0.1)
    await trio.sleep(0.1)
    ttm = vdev.ttm
    assert {name: manager.usage for name, manager in ttm.managers.items() if manager.usage} == {}
    check_empty(vdev)
    assert (ttm.num_bos, ttm.num_ghosts, ttm.num_zombies) == (0, 0, 0)
    assert not ttm.purgeable_bos
    assert not ttm.placed_in_suspend
    assert not len(ttm.defrag_list)


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER, *WAITS])
@pytest.mark.parametrize("place", ["", "vram"])
async def test_a_call_on_a_bo_that_is_gone_is_enoent(autojump_clock: MockClock, name: str, place: str) -> None:
    call = {**ALONE, **TOGETHER, **WAITS}[name]
    async with device() as vdev:
        bo, other = await make(vdev, "a", place=place), await make(vdev, "b")
        await bo.resv.wait(Usage.BOOKKEEP)
        lifetime.release(bo)
        assert await outcome(lambda: call(vdev, bo, other)) == errno.ENOENT
        await check(other, "b")
        await back(vdev, other)


@pytest.mark.parametrize("key", SETTINGS)
async def test_an_attribute_of_a_bo_that_is_gone_is_not_set(autojump_clock: MockClock, key: str) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        lifetime.release(bo)
        with pytest.raises(TtmError) as raised:
            set_text(vdev, bo, key, SETTINGS[key])
        assert raised.value.errno == errno.ENOENT
        await back(vdev)


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
async def test_a_call_that_waits_for_a_bo_which_goes_is_enoent(autojump_clock: MockClock, name: str) -> None:
    call = {**ALONE, **TOGETHER}[name]
    async with device() as vdev:
        bo, other = await make(vdev, "a"), await make(vdev, "b")
        results: list[int] = []

        async def run() -> None:
            results.append(await outcome(lambda: call(vdev, bo, other)))

        async with trio.open_nursery() as nursery:
            await bo.resv.lock()
            nursery.start_soon(run)
            await trio.testing.wait_all_tasks_blocked()
            lifetime.release(bo)
            assert not results
            bo.unreserve()
        assert results == [errno.ENOENT]
        await check(other, "b")
        await back(vdev, other)


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
async def test_a_bo_that_goes_at_any_turn_of_a_call_leaves_nothing(autojump_clock: MockClock, name: str) -> None:
    call = {**ALONE, **TOGETHER}[name]
    async with device(vram=2 * MIB, beneficial_order=4) as vdev:
        vdev.ttm.unmapper = WaitingUnmapper()
        turns, done = 0, False
        while not done:
            bo, other = await make(vdev, "a"), await make(vdev, "b")
            if name in ("restore", "copy", "fill", "busy"):
                await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
            ended: list[int] = []

            async def run(bo: BufferObject = bo, other: Any = other, ended: Any = ended) -> None:
                ended.append(await outcome(lambda: call(vdev, bo, other)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                done = bool(ended)
                lifetime.release(bo)
            assert ended[0] in (0, errno.ENOENT)
            await back(vdev, other)
            turns += 1
        assert turns > 2 or name not in UNMAPS, "it goes in the middle, or the test tests nothing"


async def test_a_restore_that_is_cancelled_after_its_bo_went_keeps_no_books(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 8 * MIB)
        await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.restore, vdev, bo, OperationContext())
            while not (bo.tt is not None and bo.tt.unfinished is not None):
                await trio.lowlevel.checkpoint()
            lifetime.release(bo)
            nursery.cancel_scope.cancel()
        await back(vdev)


async def test_a_pass_over_bos_that_go_meanwhile_counts_them_as_failed(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        bos = [await make(vdev, name, 4 * MIB) for name in "abc"]
        lifetime.release(bos[1])
        result = await defrag_pass(vdev, bos, planned=False, limit=None)
        assert result["failed"] == 1
        await back(vdev, bos[0], bos[2])


async def test_a_pinned_bo_that_goes_while_the_device_suspends_keeps_no_pin(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        vdev.ttm.unmapper = WaitingUnmapper(8)
        bo, other = await make(vdev, "a", place="vram"), await make(vdev, "b")
        await calls.pin(vdev, bo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vdev.power.suspend, OperationContext())
            while bo.pin_count:
                await trio.lowlevel.checkpoint()
            lifetime.release(bo)
        assert not bo.pin_count
        await vdev.power.resume(OperationContext())
        await back(vdev, other)


async def test_a_bo_first_used_while_suspended_is_forgotten_when_it_goes(autojump_clock: MockClock) -> None:
    async with device(placement="vram") as vdev:
        await vdev.power.suspend(OperationContext())
        bo = await make(vdev, "a")
        assert list(vdev.ttm.placed_in_suspend) == [bo]
        lifetime.release(bo)
        await back(vdev)
        with suppress(TtmError):
            await vdev.power.resume(OperationContext())


async def test_the_caching_of_a_bo_that_somebody_gives_memory_to_is_not_changed(autojump_clock: MockClock) -> None:
    """Its tt would be dropped with the pages that it is about to get."""
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, MIB)
        await bo.resv.lock()
        tt = bo.need_tt()
        with pytest.raises(TtmError) as raised:
            set_text(vdev, bo, "caching", "write_combined")
        assert raised.value.errno == errno.EBUSY
        assert bo.tt is tt
        bo.unreserve()
        set_text(vdev, bo, "caching", "write_combined")
        lifetime.release(bo)
        await back(vdev)
