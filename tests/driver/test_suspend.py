"""Suspend and resume, unplug."""

import errno

import pytest

from tests.core.harness import MIB, check, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.errors import TtmError
from ttmfs.ttm import lifetime
from ttmfs.ttm.context import OperationContext


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
