"""Suspend and resume, unplug."""

import errno

import pytest
import trio
import trio.testing

from tests.core.harness import MIB, check, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.driver.locking import reserved_dead_or_alive
from ttmfs.errors import TtmError
from ttmfs.ttm import lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.mem_space import mem_space, move_to
from ttmfs.ttm.placement import Place
from ttmfs.ttm.validate import validate


async def test_suspend_empties_every_region_and_resume_brings_all_back() -> None:
    async with device() as vdev:
        bos = [await make(vdev, f"b{n}", place=place) for n, place in enumerate(("vram", "gtt", "vram", "system"))]
        bos[2].pin()
        await idle(*bos)
        places = [(bo.mem_type, bo.resource.start if bo.resource else None) for bo in bos]
        result = await vdev.power.suspend(OperationContext())
        assert result["suspended"] == 3
        assert {bo.mem_type for bo in bos} == {"system"}
        assert vdev.ttm.managers["vram"].usage == vdev.ttm.managers["gtt"].usage == 0
        for call in (move(vdev, bos[0], "vram"), calls.evict_one(vdev, bos[0], OperationContext())):
            with pytest.raises(TtmError, match="suspended") as caught:
                await call
            assert caught.value.errno == errno.ENODEV
        for bo in bos:
            await check(bo)
        with pytest.raises(TtmError):
            await vdev.power.suspend(OperationContext())
        result = await vdev.power.resume(OperationContext())
        assert (result["restored"], result["failed"]) == (3, 0)
        assert [(bo.mem_type, bo.resource.start if bo.resource else None) for bo in bos] == places
        assert bos[2].pin_count == 1
        for bo in bos:
            await check(bo)
        with pytest.raises(TtmError):
            await vdev.power.resume(OperationContext())


async def test_a_command_that_began_before_finds_no_space_in_a_device_that_was_emptied_meanwhile() -> None:
    """A validate that had waited for a victim put its BO into VRAM behind the back of suspend."""
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        await vdev.power.suspend(OperationContext())
        for region in ("vram", "gtt"):
            async with reserved_dead_or_alive(bo):
                with pytest.raises(TtmError, match="suspended") as caught:
                    await validate(bo, (Place(region),), OperationContext())
            assert caught.value.errno == errno.ENODEV
            assert not vdev.ttm.managers[region].usage
        await check(bo)
        await vdev.power.resume(OperationContext())
        assert bo.mem_type == "vram"
        await check(bo)


@pytest.mark.parametrize("region", ["vram", "gtt"])
async def test_a_move_that_has_its_space_already_is_waited_for(region: str) -> None:
    """Until it ends the space is on no list of the region: suspend said that all was empty."""
    async with device() as vdev:
        bo = await make(vdev, "a")
        ctx = OperationContext()
        suspended = trio.Event()

        async def suspend() -> None:
            await vdev.power.suspend(OperationContext())
            assert not vdev.ttm.managers[region].usage
            suspended.set()

        async with trio.open_nursery() as nursery, reserved_dead_or_alive(bo):
            resource = await mem_space(bo, (Place(region),), ctx)
            nursery.start_soon(suspend)
            await trio.testing.wait_all_tasks_blocked()
            assert not suspended.is_set()
            if region == "gtt":
                await move_to(bo, resource, ctx, evict=False)
            else:
                with pytest.raises(TtmError, match="suspended"):
                    await move_to(bo, resource, ctx, evict=False)
        assert suspended.is_set()
        assert bo.mem_type == "system"
        await check(bo)
        await vdev.power.resume(OperationContext())
        assert bo.mem_type == ("gtt" if region == "gtt" else "system")
        await check(bo)


async def test_bos_come_and_go_while_suspended() -> None:
    async with device(placement="vram") as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        await vdev.power.suspend(OperationContext())
        lifetime.release(a)
        new = await make(vdev, "new")
        assert new.mem_type == "system"
        result = await vdev.power.resume(OperationContext())
        assert result["restored"] == 1
        await check(new)
        assert new.mem_type == "vram"
        await check(b)
        await check(new)


async def test_a_suspend_that_finds_no_memory_changes_nothing() -> None:
    async with device(vram=8 * MIB, memory=6 * MIB, swap=0) as vdev:
        bos = [await make(vdev, f"b{n}", 2 * MIB, place="vram") for n in range(4)]
        await idle(*bos)
        with pytest.raises(TtmError):
            await vdev.power.suspend(OperationContext())
        assert not vdev.ttm.suspended
        assert [bo.mem_type for bo in bos] == ["vram"] * 4
        for bo in bos:
            await check(bo)
