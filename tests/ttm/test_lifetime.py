"""Lives of BOs: pins, ghosts, shared reservations, bulks; what is freed at once, and what later."""

import errno

from tests.core.harness import MIB, PAGE, device, fails, idle, lru_names, make, move
from ttmfs.driver import calls
from ttmfs.sync.resv import Reservation
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lru import LruBulkMove


async def test_pin_does_nothing_else_and_unpin_is_balanced() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, MIB)
        bo.pin()
        assert bo.tt is None or not bo.tt.populated_pages
        assert bo.moves == 0
        bo.unpin()
        with fails(errno.EINVAL):
            bo.unpin()
        bo.pin()
        lifetime.release(bo)
        assert bo.pin_count == 0
        assert vdev.ttm.num_bos == 0


async def test_ghosts_own_the_old_space_count_as_bos_and_vanish() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", place="vram")
        await idle(bo)
        vdev.engines[0].paused = True
        await move(vdev, bo, "gtt")
        assert (vdev.ttm.num_ghosts, vdev.ttm.num_bos) == (1, 2)
        assert vdev.ttm.managers["vram"].usage == MIB
        vdev.engines[0].paused = False
        await idle(bo)
        assert (vdev.ttm.num_ghosts, vdev.ttm.num_bos) == (0, 1)
        assert vdev.ttm.managers["vram"].usage == 0


async def test_a_bulk_moves_as_a_block_and_pinned_or_swapped_members_leave_it() -> None:
    async with device() as vdev:
        shared = Reservation(vdev.ttm.ww_class)
        bulk = LruBulkMove()
        members: list[BufferObject] = []
        for name in "abc":
            bo = BufferObject(vdev.ttm, vdev.funcs, name=name, resv=shared)
            bo.assign(vdev.ttm.managers["system"].alloc(bo, vdev.default_placement[0]))
            bo.placed = True
            await access.write(bo, 0, b"1" * PAGE)
            await bo.resv.lock()
            bo.bulk = bulk
            assert bo.resource is not None
            bulk.add(bo.resource)
            bo.unlock()
            members.append(bo)
        await make(vdev, "other")
        assert lru_names(vdev, "system")[-1] == "other" or bulk.count == 3
        bulk.move_tail()
        a, b, _c = members
        b.pin()
        assert bulk.count == 2
        b.unpin()
        assert bulk.count == 3
        await calls.swapout_one(vdev, a, OperationContext())
        assert bulk.count == 2
        await access.read(a, 0, PAGE)
        assert bulk.count == 3


async def test_one_of_a_shared_reservation_is_deleted_on_its_own() -> None:
    async with device() as vdev:
        shared = Reservation(vdev.ttm.ww_class)
        bos = []
        for name in "ab":
            bo = BufferObject(vdev.ttm, vdev.funcs, name=name, resv=shared)
            bo.assign(vdev.ttm.managers["system"].alloc(bo, vdev.default_placement[0]))
            bo.placed = True
            await access.write(bo, 0, b"1" * PAGE)
            bos.append(bo)
        await bos[0].resv.lock()
        lifetime.release(bos[1])
        # Not while the shared one is held: who holds it may unlock it by the one that is deleted.
        assert bos[1].resv is shared
        bos[0].resv.unlock()
        lifetime.cleanup_when_idle(bos[1])
        assert bos[1].resv is not shared
        assert vdev.ttm.num_bos == 1
