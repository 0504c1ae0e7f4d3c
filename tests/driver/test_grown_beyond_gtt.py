"""A BO in VRAM that has grown beyond all of gtt: there is no way by gtt, so it is evicted straight to system."""

import pytest

from tests.core.exercise import exercise
from tests.core.harness import MIB, device, idle, make, move, pattern
from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.ttm import access
from ttmfs.ttm.context import OperationContext


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


@pytest.mark.parametrize("seed", range(3))
async def test_no_byte_is_wrong_where_gtt_is_small(seed: int) -> None:
    config = Config(vram=4 * MIB, gtt=MIB // 2, memory=64 * MIB, swap=64 * MIB)
    counts = await exercise(seed, steps=120, config=config)
    assert counts["region"] + counts["evict"] > 0
