"""More BOs than VRAM holds: every page stays right, and priorities and pins decide who is evicted."""

import random

import pytest

from tests.core.harness import MIB, check, device, idle, make, move
from ttmfs.driver import calls
from ttmfs.ttm import lifetime
from ttmfs.ttm.context import OperationContext


@pytest.mark.parametrize(("percent", "sync"), [(175, False), (175, True), (200, False), (200, True)])
async def test_overcommit_with_every_page_checked(percent: int, sync: bool) -> None:
    async with device(vram=8 * MIB, gtt=64 * MIB, sync_moves=sync) as vdev:
        rng = random.Random(percent)
        bos = [await make(vdev, f"bo{n}", 512 << 10) for n in range(16 * percent // 100)]
        for _ in range(6):
            rng.shuffle(bos)
            for bo in bos:
                await move(vdev, bo, "vram")
                assert vdev.ttm.managers["vram"].usage <= 8 * MIB
        in_vram = [bo for bo in bos if bo.mem_type == "vram"]
        assert len(in_vram) == 16
        for bo in bos:
            await check(bo)
        assert vdev.ttm.counters.moves.evictions >= len(bos)


async def test_memory_overcommit_goes_through_the_store() -> None:
    async with device(vram=0, memory=8 * MIB, swap=32 * MIB, pool_limit=0) as vdev:
        bos = [await make(vdev, f"bo{n}") for n in range(16)]
        for _ in range(2):
            for bo in bos:
                await check(bo)
        assert vdev.ttm.counters.backup.pages_out >= 16 * 256
        for bo in bos:
            lifetime.release(bo)
        assert vdev.pool.in_use_pages == 0
        assert vdev.ttm.swap_store is not None
        assert vdev.ttm.swap_store.slots.stored == 0


async def test_priorities_and_pins_decide() -> None:
    async with device() as vdev:
        keep = await make(vdev, "keep", place="vram")
        keep.priority = 3
        keep.relist()
        pinned = await make(vdev, "pinned", place="vram")
        await calls.pin(vdev, pinned)
        cheap = [await make(vdev, f"cheap{n}", place="vram") for n in range(2)]
        for number in range(6):
            await move(vdev, await make(vdev, f"new{number}"), "vram")
        assert (keep.mem_type, keep.evictions) == ("vram", 0)
        assert (pinned.mem_type, pinned.evictions) == ("vram", 0)
        assert [bo.evictions for bo in cheap] == [1, 1]


async def test_extra_regions_of_both_kinds() -> None:
    from ttmfs.driver.config import Region  # noqa: PLC0415

    regions = (Region("stolen", 2 * MIB, "range"), Region("local", 2 * MIB, "buddy"))
    async with device(regions=regions) as vdev:
        a, b, c = [await make(vdev, name) for name in "abc"]
        await move(vdev, a, "stolen")
        await move(vdev, b, "stolen:topdown")
        await idle(a, b)
        assert a.resource is not None
        assert b.resource is not None
        assert (a.resource.start, b.resource.start) == (0, 256)
        await move(vdev, c, "stolen")
        assert (a.mem_type, b.mem_type, c.mem_type) == ("gtt", "stolen", "stolen")
        await move(vdev, c, "local:contiguous")
        await calls.evict_region(vdev, "stolen", None, OperationContext())
        assert vdev.ttm.managers["stolen"].usage == 0
        for bo in (a, b, c):
            await check(bo)
