"""A fence slot that is missing anywhere on the way of a move: the call fails, and no space stays allocated."""

import pytest

from tests.core.harness import MIB, check, device, make, move
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence
from ttmfs.ttm import lifetime


@pytest.mark.parametrize("before", [*range(8), 40])
async def test_space_is_given_back_when_its_eviction_fences_find_no_slot(before: int) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", MIB)
        manager = vdev.ttm.managers["vram"]
        copying = [Fence(1000 + number, 1, "a copy out of vram") for number in range(4)]
        assert all(manager.add_eviction_fence(fence) for fence in copying)
        attr = vdev.ttm.inject["fence_slot"]
        attr.probability, attr.times, attr.space = 100, 1, before
        failed = False
        try:
            await move(vdev, bo, "vram")
        except TtmError:
            failed = True
        assert manager.usage == (0 if failed else MIB)
        assert failed or before >= 6, "the slots of all eviction fences are asked for, or the test tests nothing"
        assert not failed or before < 40
        attr.probability = 0
        for fence in copying:
            fence.signal()
        await check(bo)
        lifetime.release(bo)
