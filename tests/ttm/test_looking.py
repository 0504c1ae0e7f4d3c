"""Looking takes nothing: READs of holes while nobody can store, and the first who can."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.core.harness import MIB, PAGE, check, device, idle, make, move, pattern
from tests.svm.conftest import MakeDevice, svm_device
from ttmfs.driver import calls
from ttmfs.svm import cpu
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_size
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.unmap import unmap_virtual

__all__ = ["svm_device"]


class SlowUnmapper:
    """INVALs that end when they are told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = trio.Event()

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.calls += 1
        await self.go.wait()


@pytest.mark.parametrize("placement", ["system", "vram gtt system", "vram"])
async def test_a_hole_that_is_looked_at_stays_one_and_places_nothing(placement: str) -> None:
    async with device(placement=placement, vram=64 * MIB, gtt=64 * MIB) as vdev:
        bo = vdev.create_bo("a")
        placed = bo.placed
        set_size(bo, 32 * MIB)
        after_stores(bo)
        for offset in range(0, 32 * MIB, MIB):
            assert bytes(await access.read(bo, offset, MIB)) == bytes(MIB)
        assert vdev.pool.in_use_pages == 0
        assert (bo.mem_type, bo.placed, bo.looked) == ("system", placed, True)
        await before_stores(bo, lambda: unmap_virtual(bo))
        assert not bo.looked
        assert bytes(await access.read(bo, MIB, PAGE)) == bytes(PAGE)
        assert bo.has_memory(256, 1), "whoever reads it may store into it now"


async def test_content_is_read_wherever_it_is_and_holes_beside_it_stay() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", MIB)
        set_size(bo, 3 * MIB)
        after_stores(bo)
        wanted = pattern("a", MIB) + bytes(2 * MIB)
        assert bytes(await access.read(bo, 0, 3 * MIB)) == wanted
        assert bo.need_tt().populated_pages == 256
        await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
        assert bytes(await access.read(bo, 0, 3 * MIB)) == wanted
        assert (bo.need_tt().populated_pages, bo.need_tt().backed_up_pages) == (256, 0)
        set_size(bo, MIB)
        await move(vdev, bo, "vram")
        await idle(bo)
        set_size(bo, 3 * MIB)
        assert bytes(await access.read(bo, MIB - 10, MIB)) == wanted[MIB - 10 : 2 * MIB - 10]
        assert vdev.pool.in_use_pages == 0
        set_size(bo, MIB)
        await check(bo)


@pytest.mark.parametrize("writer", [False, True])
async def test_a_look_that_waited_sees_who_has_come_meanwhile(autojump_clock: MockClock, writer: bool) -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        set_size(bo, MIB)
        after_stores(bo)
        await bo.resv.lock()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(access.read, bo, 0, 8 * PAGE)
            await wait_all_tasks_blocked()
            if writer:
                await before_stores(bo, lambda: unmap_virtual(bo))
            bo.unreserve()
        assert bo.has_memory(0, 8) == writer
        assert bo.looked != writer


async def test_every_open_waits_until_the_zeros_are_gone(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        unmapper = vdev.ttm.unmapper = SlowUnmapper()
        bo = vdev.create_bo("a")
        set_size(bo, MIB)
        after_stores(bo)
        await access.read(bo, 0, PAGE)
        opened: list[int] = []

        async def opens(number: int) -> None:
            await before_stores(bo, lambda: unmap_virtual(bo))
            opened.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(opens, 1)
            await wait_all_tasks_blocked()
            nursery.start_soon(opens, 2)
            await wait_all_tasks_blocked()
            assert not opened
            # Rule R1: while that INVAL is outstanding a READ waits for nothing, and gives memory.
            assert bytes(await access.read(bo, 0, 2 * PAGE)) == bytes(2 * PAGE)
            assert bo.has_memory(0, 2)
            unmapper.go.set()
        assert sorted(opened) == [1, 2]
        assert unmapper.calls == 2
        await before_stores(bo, lambda: unmap_virtual(bo))
        assert unmapper.calls == 2, "nothing was looked at since"


async def test_a_look_during_an_inval_takes_nothing_either(autojump_clock: MockClock) -> None:
    async with device() as vdev:
        unmapper = vdev.ttm.unmapper = SlowUnmapper()
        bo = await make(vdev, "a", MIB)
        set_size(bo, 2 * MIB)
        after_stores(bo)
        bo.handed_out = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.unmap, vdev, bo, 0, 0)
            await wait_all_tasks_blocked()
            before = vdev.pool.in_use_pages
            assert bytes(await access.read(bo, MIB - PAGE, 9 * PAGE)) == pattern("a", MIB)[-PAGE:] + bytes(8 * PAGE)
            assert vdev.pool.in_use_pages == before
            unmapper.go.set()
        assert bo.looked


async def test_looking_through_a_space_makes_neither_memory_nor_chunks(svm_device: MakeDevice) -> None:
    async with svm_device() as dev:
        space = dev.space(1 << 40)
        await cpu.write(space, 5 * MIB, b"here")
        after_stores(space)
        held = dev.vdev.pool.in_use_pages
        for offset in (*range(0, 64 * MIB, MIB), (1 << 40) - MIB):
            got = bytes(await cpu.read(space, offset, MIB))
            assert got == (b"here" + bytes(MIB - 4) if offset == 5 * MIB else bytes(MIB))
        assert dev.vdev.pool.in_use_pages == held
        assert len(space.chunks) == 1
        assert space.handed_out(0, 1)
        assert space.handed_out((1 << 28) - 1, 1 << 28)
        assert not space.handed_out(1 << 20, 1 << 21)
        await before_stores(space, space.drop_looked)
        assert not space.handed_out(0, 1 << 28)
        assert bytes(await cpu.read(space, 0, PAGE)) == bytes(PAGE)
        assert dev.vdev.pool.in_use_pages == held + 1
        space.release()
        await dev.check_nothing_left()


async def test_many_looks_here_and_there_cost_little(svm_device: MakeDevice) -> None:
    async with svm_device() as dev:
        space = dev.space(1 << 40)
        after_stores(space)
        for number in range(3000):
            await cpu.read(space, number * 6 * MIB, PAGE)
        assert not space.chunks
        assert len(space.looked_at._runs) < 3000
        assert all(space.handed_out(number * 1536, number * 1536 + 1) for number in range(3000))
        space.release()
        await dev.check_nothing_left()
