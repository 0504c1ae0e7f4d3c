"""Swapout: over the page limit, and there and back."""

from tests.core.harness import MIB, check, device, lru_names, make
from ttmfs.driver import calls
from ttmfs.ttm.context import OperationContext


async def test_over_the_page_limit_others_are_swapped_out_then_allocated_anyway() -> None:
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


async def test_swapout_and_back() -> None:
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
