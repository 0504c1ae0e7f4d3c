"""A BO in VRAM that has grown beyond all of gtt: there is no way by gtt, so it is evicted straight to system."""

from typing import Any

import pytest

from tests.core.exercise import exercise
from tests.core.harness import MIB, device, idle, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.errors import TtmError
from ttmfs.ttm import access, mem_space, populate
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size


@pytest.mark.parametrize("how", ["evict", "suspend"])
async def test_it_leaves_vram(how: str) -> None:
    async with device(vram=8 * MIB, gtt=4 * MIB, memory=64 * MIB) as vdev:
        bo = await make(vdev, "a", 3 * MIB)
        await move(vdev, bo, "vram")
        await idle(bo)
        await access.write(bo, 3 * MIB, b"x" * (3 * MIB))
        if how == "evict":
            await calls.evict_one(vdev, bo, OperationContext())
        else:
            await vdev.power.suspend(OperationContext())
            await vdev.power.resume(OperationContext())
        assert bo.mem_type == "system"
        await idle(bo)
        assert bytes(await access.read(bo, 0, 6 * MIB)) == pattern("a", 3 * MIB) + b"x" * (3 * MIB)


async def test_one_that_grows_beyond_gtt_while_others_leave_it_goes_to_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with device(vram=8 * MIB, gtt=4 * MIB, memory=64 * MIB) as vdev:
        victim, bo = await make(vdev, "victim", 3 * MIB), await make(vdev, "a", 2 * MIB)
        await move(vdev, bo, "vram")
        await move(vdev, victim, "gtt")
        await idle(bo)
        real = mem_space.evict_bo

        async def grows(leaves: BufferObject, *arguments: Any, **options: Any) -> None:
            await real(leaves, *arguments, **options)
            if leaves is victim:
                set_size(bo, 5 * MIB)

        monkeypatch.setattr(mem_space, "evict_bo", grows)
        await calls.evict_one(vdev, bo, OperationContext())
        assert bo.size == 5 * MIB, "it was to grow while its victim leaves gtt"
        assert (victim.mem_type, bo.mem_type) == ("system", "system")
        await idle(bo)
        assert bytes(await access.read(bo, 0, 5 * MIB)) == pattern("a", 2 * MIB) + bytes(3 * MIB)


async def test_no_byte_is_wrong_where_gtt_is_small() -> None:
    config = Config(vram=4 * MIB, gtt=MIB // 2, memory=64 * MIB, swap=64 * MIB)
    evicted = 0
    for seed in range(4):
        counts = await exercise(seed, steps=120, config=config)
        evicted += counts.get("region", 0) + counts.get("evict", 0)
    assert evicted > 0


async def test_one_that_grows_beyond_all_memory_while_room_is_made_is_enomem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an array of an entry for each of its pages, which no host has memory for."""
    async with device(vram=8 * MIB, gtt=8 * MIB, memory=16 * MIB) as vdev:
        bo = await make(vdev, "a", MIB)

        async def grows(*_arguments: object, **_options: object) -> None:
            set_size(bo, 1 << 46)
            bo.need_tt()

        monkeypatch.setattr(populate, "below_limit", grows)
        set_size(bo, 2 * MIB)
        await bo.resv.lock()
        try:
            with pytest.raises(TtmError) as caught:
                await populate.populate_all(bo, bo.need_tt(), OperationContext())
            assert caught.value.name == "ENOMEM"
        finally:
            bo.unreserve()
