"""Defrag of one BO and the pool: what it takes from there, and what it leaves alone."""

import errno

import pytest

from tests.driver.conftest import MakeDevice
from tests.driver.defrag_tools import MIB, content, defrag, hog, orders, scattered
from ttmfs.errors import TtmError
from ttmfs.ttm import access


async def test_a_failed_order_is_enomem_at_once_and_reclaims_nothing(device: MakeDevice) -> None:
    async with device(pool_limit=64 * MIB) as vdev:
        bo, _data = await scattered(vdev, "a", 2 * MIB)
        others = hog(vdev)
        victim = vdev.create_bo("zeros")
        await access.write(victim, 0, bytes(MIB))
        pooled = vdev.pool.pooled_pages
        with pytest.raises(TtmError) as failure:
            await defrag(vdev, bo)
        assert failure.value.errno == errno.ENOMEM
        assert vdev.pool.pooled_pages == pooled
        assert victim.tt is not None
        assert victim.tt.populated_pages == 256, "reclaim would have dropped its zero pages"
        vdev.pool.free(others, to_pool=False)


async def test_what_was_just_freed_is_had_from_the_pool(device: MakeDevice) -> None:
    """In single pages it is free, but does not merge there."""
    async with device(pool_limit=64 * MIB) as vdev:
        bo, data = await scattered(vdev, "a", 2 * MIB)
        pool = vdev.pool
        pool.free(pool.alloc(pool.free_pages, max_order=0, zero=False).pages)
        assert pool.free_by_order()[9] + pool.free_by_order()[10] == 0
        assert (await defrag(vdev, bo))["moved"] == 1
        assert orders(bo) == {9: 1}
        assert await content(bo) == data


async def test_what_cannot_be_better_leaves_the_pool_alone(device: MakeDevice) -> None:
    async with device(pool_limit=64 * MIB) as vdev:
        bo = vdev.create_bo("a")
        await access.write(bo, 0, b"small")
        vdev.pool.free(vdev.pool.alloc(1024, max_order=0, zero=False).pages)
        assert (await defrag(vdev, bo))["moved"] == 0
        assert vdev.pool.pooled_pages == 1024
