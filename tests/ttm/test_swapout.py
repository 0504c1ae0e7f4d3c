"""Swapout, over the page limit too, and back: never a lost byte, whatever happens in the middle."""

import errno

import pytest
import trio

from tests.core.harness import MIB, PAGE, WaitingUnmapper, check, device, lru_names, make, move, pattern
from ttmfs.driver import calls
from ttmfs.errors import TtmError
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.swapout import swapout


async def _out(bo: BufferObject) -> None:
    await bo.resv.lock()
    try:
        await swapout(bo, OperationContext())
    finally:
        bo.unreserve()


@pytest.mark.parametrize("place", ["system", "gtt", "vram"])
@pytest.mark.parametrize("back", ["read", "write", "gtt", "vram", "restore"])
async def test_round_trip(place: str, back: str) -> None:
    async with device() as vdev:
        size = MIB + 1234
        bo = await make(vdev, "a", size, place=place)
        await _out(bo)
        assert bo.swapped
        assert vdev.pool.in_use_pages == 0
        if back == "read":
            assert bytes(await access.read(bo, 700_000, 9)) == pattern("a", size)[700_000:700_009]
        elif back == "write":
            await access.write(bo, 0, pattern("a", 10))
        elif back == "restore":
            await calls.restore(vdev, bo, OperationContext())
        else:
            await move(vdev, bo, back)
        assert not bo.swapped
        await check(bo)


async def test_truncate_while_swapped() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        await _out(bo)
        lifetime.set_size(bo, 10 * PAGE + 100)
        lifetime.set_size(bo, MIB)
        assert vdev.ttm.swap_store is not None
        assert vdev.ttm.swap_store.slots.stored == 11
        got = bytes(await access.read(bo, 0, MIB))
        kept = 10 * PAGE + 100
        assert got == pattern("a", kept) + bytes(MIB - kept)


async def test_who_is_cut_stands_where_what_is_left_of_it_belongs() -> None:
    """Nobody could take the memory of a BO that stood with those that are in the store."""
    async with device() as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        for bo in (a, b):
            await _out(bo)
        assert lru_names(vdev, "system") == []
        lifetime.set_size(a, 0)
        assert lru_names(vdev, "system") == ["a"]
        await access.write(b, MIB, b"more")
        assert lru_names(vdev, "system") == ["a", "b"]
        lifetime.set_size(b, MIB)
        assert b.swapped
        assert lru_names(vdev, "system") == ["a"]


async def test_truncate_and_write_while_it_is_being_swapped_out() -> None:
    """The gate of a swapout keeps WRITEs away; a truncate is applied at once."""
    async with device() as vdev:
        bo = await make(vdev, "a", 8 * MIB)
        model = bytearray(pattern("a", 8 * MIB))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_out, bo)
            while not bo.copies:
                await trio.lowlevel.checkpoint()
            lifetime.set_size(bo, 5000)
            lifetime.set_size(bo, 2 * MIB)
            nursery.start_soon(access.write, bo, 4000, b"w" * 10)
        model[5000:] = bytes(2 * MIB - 5000)
        model[4000:4010] = b"w" * 10
        assert bytes(await access.read(bo, 0, bo.size)) == bytes(model)


async def test_cancelled_and_failed_swapouts_lose_nothing() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 8 * MIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_out, bo)
            while not bo.copies:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert vdev.ttm.swap_store is not None
        assert vdev.ttm.swap_store.slots.stored == 0
        await check(bo)
        vdev.ttm.inject["store_write"].probability = 100
        with pytest.raises(TtmError):
            await calls.swapout_one(vdev, bo, OperationContext())
        await check(bo)


async def test_a_failed_swap_in_keeps_everything_for_the_next_try() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")
        await _out(bo)
        vdev.ttm.inject["store_read"].probability = 100
        with pytest.raises(TtmError):
            await calls.restore(vdev, bo, OperationContext())
        assert bo.swapped
        vdev.ttm.inject["store_read"].probability = 0
        await check(bo)


@pytest.mark.parametrize(("why", "code"), [("pinned", errno.EBUSY), ("full", errno.ENOSPC)])
async def test_refusals(why: str, code: int) -> None:
    async with device(swap=8 * PAGE if why == "full" else MIB) as vdev:
        bo = await make(vdev, "a")
        if why == "pinned":
            bo.pin()
        with pytest.raises(TtmError) as caught:
            await calls.swapout_one(vdev, bo, OperationContext())
        assert caught.value.errno == code
        await check(bo)


async def test_a_bo_whose_client_goes_on_reading_is_given_up_after_a_while() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a")

        class Reader:
            calls = 0

            async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
                self.calls += 1
                await access.read(bo, 0, PAGE)

        reader = vdev.ttm.unmapper = Reader()
        await check(bo)
        with pytest.raises(TtmError) as caught:
            await calls.swapout_one(vdev, bo, OperationContext())
        assert caught.value.errno == errno.EBUSY
        assert reader.calls == 3
        assert bo.snapshot() == b"s" * 256


async def test_the_walk_meets_nobody_twice() -> None:
    """Probe 40 and CVE-2026-52965: BOs whose swapout fails are bumped meanwhile, and the walk still ends."""
    async with device() as vdev:
        bos = [await make(vdev, f"b{n}", PAGE) for n in range(20)]
        tried: list[str] = []

        class Bumping:
            async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
                tried.append(bo.name)
                bo.bump()
                await access.read(bo, 0, 1)

        vdev.ttm.unmapper = Bumping()
        result = await calls.swapout_all(vdev, 1 << 20, OperationContext())
        assert result["pages_out"] == 0
        assert tried == [bo.name for bo in bos for _ in range(3)]
        assert vdev.ttm.counters.swap.failed == 20


async def test_device_swapout_takes_the_oldest_of_system_and_gtt() -> None:
    async with device() as vdev:
        vdev.ttm.unmapper = WaitingUnmapper()
        a, b, c = await make(vdev, "a"), await make(vdev, "b"), await make(vdev, "c", place="gtt")
        result = await calls.swapout_all(vdev, 1, OperationContext())
        assert result["pages_out"] == 256
        assert (a.swapped, b.swapped, c.swapped) == (True, False, False)
        await calls.swapout_all(vdev, 1 << 20, OperationContext())
        assert (b.swapped, c.swapped, c.mem_type) == (True, True, "system")
        for bo in (a, b, c):
            await check(bo)


async def test_deleting_and_gutting_swapped_bos_frees_the_store() -> None:
    async with device() as vdev:
        a, b = await make(vdev, "a"), await make(vdev, "b")
        await calls.swapout_all(vdev, 1 << 20, OperationContext())
        assert vdev.ttm.swap_store is not None
        assert vdev.ttm.swap_store.slots.stored == 512
        lifetime.release(a)
        await move(vdev, b, "none")
        assert vdev.ttm.swap_store.slots.stored == 0
        assert bytes(await access.read(b, 0, 10)) == bytes(10)


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
