"""BOs that are far larger than anything: what is done with them costs what they hold."""

import tracemalloc

import pytest

from tests.core.harness import MIB, PAGE, check, device, idle, make, outcome, pattern
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
