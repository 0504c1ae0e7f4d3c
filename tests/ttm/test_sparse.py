"""BOs that are far larger than anything: what is done with them costs what they hold."""

import errno
import tracemalloc

import pytest

from tests.core.harness import MIB, PAGE, check, device, idle, make, move, outcome, pattern
from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.dirty import DirtyTracker
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import MAX_SIZE
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size

HUGE = 64 << 40


async def test_append_and_cut_take_no_word_for_the_holes() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", MIB)
        set_size(bo, HUGE)
        tt = bo.need_tt()
        assert tt.num_leaves == 1
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(5):
                await access.write(bo, HUGE, b"x")
                assert (tt.num_pages, tt.num_leaves) == (HUGE // PAGE + 1, 2)
                set_size(bo, HUGE)
                assert (tt.num_pages, tt.num_leaves) == (HUGE // PAGE, 1)
            assert tracemalloc.get_traced_memory()[1] - before < 256 << 10
        finally:
            tracemalloc.stop()
        set_size(bo, MIB)
        await check(bo)


async def test_everything_that_walks_a_bo_goes_by_what_it_holds() -> None:
    async with device(memory=32 * MIB) as vdev:
        bo = await make(vdev, "a", 2 * MIB)
        set_size(bo, MAX_SIZE)
        await access.write(bo, MAX_SIZE - PAGE, b"z" * PAGE)
        held = bo.need_tt().populated_pages
        assert bo.snapshot(0, 3) == b"sss"
        assert bo.snapshot(MAX_SIZE // PAGE - 1, 100) == b"s"
        assert sum(blocks << order for order, blocks in bo.need_tt().page_orders().items()) == held
        assert isinstance(bo.dirty, DirtyTracker)
        assert bo.dirty.runs() == [(0, 512), (MAX_SIZE // PAGE - 1, MAX_SIZE // PAGE)]
        assert (await defrag_bo(vdev, bo, OperationContext()))["bytes_moved"] in (0, held * PAGE)
        await idle(bo)
        assert (await calls.backup_one(vdev, bo, BackupFlags(), OperationContext()))["pages_out"] == held
        assert bytes(await access.read(bo, MAX_SIZE - PAGE, PAGE)) == b"z" * PAGE
        assert bytes(await access.read(bo, 0, 2 * MIB)) == pattern("a", 2 * MIB)
        assert await outcome(lambda: calls.restore(vdev, bo, OperationContext())) == 12
        await calls.swapout_one(vdev, bo, OperationContext())
        set_size(bo, 2 * MIB)
        await check(bo)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_defrag_of_a_sparse_bo_copies_its_content_only(fails: bool) -> None:
    async with device(memory=32 * MIB, copy_bandwidth=1e9) as vdev:
        bo = await make(vdev, "a", 2 * MIB)
        set_size(bo, HUGE)
        vdev.ttm.inject["engine"].probability, vdev.ttm.inject["engine"].times = 100 * fails, 1
        result = await defrag_bo(vdev, bo, OperationContext(compact=True))
        assert result["bytes_moved"] == 2 * MIB
        # At a gigabyte a second the apparent size would take 19 hours.
        assert await bo.resv.wait(Usage.BOOKKEEP, 20)
        assert sum(engine.cpu_copies for engine in vdev.engines) == fails
        set_size(bo, 2 * MIB)
        await check(bo)


@pytest.mark.parametrize("how", ["evict", "validate", "for another"])
async def test_a_bo_longer_than_all_memory_leaves_vram(how: str) -> None:
    """It takes memory for what vram held; otherwise one `truncate -s 64T` would keep vram from everybody for ever."""
    async with device(memory=32 * MIB) as vdev:
        bo = await make(vdev, "a", MIB, place="vram")
        set_size(bo, HUGE)
        await access.write(bo, HUGE - PAGE, b"z" * PAGE)
        if how == "evict":
            await calls.evict_one(vdev, bo, OperationContext())
        elif how == "validate":
            await move(vdev, bo, "system")
        else:
            other = await make(vdev, "b", 4 * MIB, place="vram")
            assert other.mem_type == "vram"
        await idle(bo)
        assert bo.mem_type == "system"
        assert bo.need_tt().populated_pages <= MIB // PAGE + 512
        assert bytes(await access.read(bo, HUGE - PAGE, PAGE)) == b"z" * PAGE
        set_size(bo, MIB)
        await check(bo)


async def test_a_bo_longer_than_all_memory_stays_in_vram_as_it_was_when_there_is_none_at_all() -> None:
    async with device(memory=8 * MIB, swap=0, placement="system") as vdev:
        bo = await make(vdev, "a", 2 * MIB, place="vram")
        set_size(bo, HUGE)
        # The rest of memory: fewer pages are left than vram has to give.
        full = await make(vdev, "full", 6 * MIB)
        before = vdev.pool.in_use_pages
        assert await outcome(lambda: calls.evict_one(vdev, bo, OperationContext())) == errno.ENOMEM
        assert (bo.mem_type, vdev.pool.in_use_pages) == ("vram", before)
        await check(full)
        set_size(bo, 2 * MIB)
        await check(bo)
