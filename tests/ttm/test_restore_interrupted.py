"""A restore that is cancelled, wherever it is: no page belongs to two, and the next restore brings all of it."""

import pytest
import trio

from tests.core.harness import MIB, check, device, make
from ttmfs.driver import calls
from ttmfs.ttm import lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.context import OperationContext


@pytest.mark.parametrize("turns", range(8))
async def test_cancelled_after_some_turns_of_the_loop(turns: int) -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 3 * MIB)
        assert (await calls.backup_one(vdev, bo, BackupFlags(), OperationContext()))["pages_out"] == 768
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.restore, vdev, bo, OperationContext())
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert vdev.selfcheck() == []
        tt = bo.need_tt()
        held = 0 if tt.unfinished is None else len(tt.unfinished.pages)
        assert vdev.pool.in_use_pages == tt.populated_pages + held
        assert tt.populated_pages + tt.backed_up_pages == 768
        if turns % 2:
            await calls.restore(vdev, bo, OperationContext())
            assert tt.is_populated
            await check(bo)
        lifetime.release(bo)
        assert vdev.pool.in_use_pages == 0
