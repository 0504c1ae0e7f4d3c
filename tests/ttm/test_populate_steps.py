"""A BO gets its memory, and gives it up, in steps: what others do in between, and what becomes of it then."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import hypothesis.strategies as st
import numpy as np
import pytest
import trio
from hypothesis import example, given, settings

from tests.core.harness import MIB, PAGE, check, device, fails, idle, make, move, pattern
from tests.core.steps import small_steps
from tests.memory import pools
from tests.turns import Turns
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import set_user_limit
from ttmfs.driver.locking import reserved
from ttmfs.memory.leftovers import STEP_PAGES
from ttmfs.memory.pool import PagePool
from ttmfs.observe.counters import Lull, RequestCounters
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.lifetime import set_account, set_size
from ttmfs.ttm.populate import populate_all
from ttmfs.ttm.tt import TT

SIZE = 2 * MIB
PAGES = SIZE // PAGE


@asynccontextmanager
async def sparse(vdev: VirtualDevice, name: str = "a") -> AsyncIterator[BufferObject]:
    """A BO in system of which a page in the middle has content, reserved."""
    bo = vdev.create_bo(name)
    set_size(bo, SIZE)
    bo.placed = True
    await access.write(bo, PAGES // 2 * PAGE, b"m" * PAGE)
    async with reserved(bo):
        yield bo


async def populate(bo: BufferObject, between: Callable[[int], Awaitable[None]]) -> int:
    """Populate all of it; `between` runs after each step with the number of pages that are there. The steps."""
    steps = 0
    ended = False

    async def others() -> None:
        nonlocal steps
        tt = bo.need_tt()
        seen = tt.populated_pages
        while not ended:
            await trio.lowlevel.checkpoint()
            if tt.populated_pages != seen:
                seen = tt.populated_pages
                steps += 1
                await between(seen)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await populate_all(bo, bo.need_tt(), OperationContext())
        ended = True
    return steps


async def test_no_step_of_a_move_is_long_while_there_are_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    freed: list[int] = []
    draw, free = PagePool.draw, PagePool.free

    def count_drawn(pool: PagePool, *arguments: Any, **options: Any) -> Any:
        pages = draw(pool, *arguments, **options)
        drawn.append(len(pages))
        return pages

    def count_freed(pool: PagePool, pages: Any, *arguments: Any, **options: Any) -> None:
        freed.append(len(pages))
        free(pool, pages, *arguments, **options)

    size = 10 * STEP_PAGES * PAGE
    async with device(vram=size, gtt=2 * size, memory=4 * size) as vdev:
        bo = await make(vdev, "a", size)
        await move(vdev, bo, "vram")
        await idle(bo)
        vdev.pool.leftovers.settle()
        monkeypatch.setattr(Lull, "__call__", lambda _self: False)
        monkeypatch.setattr(PagePool, "draw", count_drawn)
        monkeypatch.setattr(PagePool, "free", count_freed)
        await move(vdev, bo, "gtt")
        await idle(bo)
        await move(vdev, bo, "vram")
        await idle(bo)
        with trio.fail_after(20):
            while vdev.pool.leftovers.pages:
                await trio.sleep(0.001)
        assert (sum(drawn), sum(freed), vdev.pool.leftovers.pages) == (10 * STEP_PAGES, 10 * STEP_PAGES, 0)
        # A block that goes on in the next part goes with that.
        assert max(drawn) <= STEP_PAGES
        assert max(freed) <= STEP_PAGES + 1024
        await check(bo)


async def test_who_needs_leftovers_takes_them_apart_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    free = PagePool.free

    def note_freed(pool: PagePool, pages: Any, *arguments: Any, **options: Any) -> None:
        turns.note("freed", len(pages))
        free(pool, pages, *arguments, **options)

    size = 10 * STEP_PAGES * PAGE
    async with device(vram=size, gtt=2 * size, memory=size + size // 4) as vdev:
        bo = await make(vdev, "a", size, place="vram")
        await idle(bo)
        monkeypatch.setattr(Lull, "__call__", lambda _self: False)
        for _ in range(3):
            await move(vdev, bo, "gtt")
            await idle(bo)
            await move(vdev, bo, "vram")
            await idle(bo)
            assert vdev.pool.leftovers.are_needed_for(10 * STEP_PAGES)
            monkeypatch.setattr(PagePool, "free", note_freed)
            with turns:
                await move(vdev, bo, "gtt")
            monkeypatch.setattr(PagePool, "free", free)
            await idle(bo)
            await move(vdev, bo, "vram")
            await idle(bo)
        # One step of the move's own and one of who does it when nobody needs them.
        assert 0 < turns.most("freed") <= 2 * (STEP_PAGES + 1024)
        assert not vdev.selfcheck()
        await check(bo)


async def test_what_others_do_in_between_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch)
    async with device() as vdev, sparse(vdev) as bo:
        model = bytearray(SIZE)
        model[PAGES // 2 * PAGE : (PAGES // 2 + 1) * PAGE] = b"m" * PAGE

        async def between(there: int) -> None:
            assert not vdev.selfcheck()
            # A hole that is to come, and one that has been.
            for page in (PAGES - 1 - there // 2, there // 3):
                bo.gate.begin_unmapping(range(page, page + 1))
                await access.write(bo, page * PAGE, bytes([there % 255 + 1]) * PAGE)
                model[page * PAGE : (page + 1) * PAGE] = bytes([there % 255 + 1]) * PAGE
                assert bytes(await access.read(bo, page * PAGE, PAGE)) == model[page * PAGE : (page + 1) * PAGE]
                bo.gate.end_unmapping(range(page, page + 1))

        assert await populate(bo, between) > 4
        tt = bo.need_tt()
        assert (tt.populated_pages, tt.taken, tt.stock, vdev.pool.in_use_pages) == (PAGES, 0, None, PAGES)
        assert not vdev.selfcheck()
        bo.unreserve()
        assert bytes(await access.read(bo, 0, SIZE)) == bytes(model)
        await bo.resv.lock()


@pytest.mark.parametrize("size", [PAGE, SIZE // 2 + 100, SIZE, 2 * SIZE])
async def test_a_size_that_changes_in_between(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    small_steps(monkeypatch)
    async with device() as vdev:
        async with sparse(vdev) as bo:
            changed = False

            async def between(there: int) -> None:
                nonlocal changed
                if there > PAGES // 4 and not changed:
                    changed = True
                    set_size(bo, size)

            await populate(bo, between)
            assert changed
        assert bo.need_tt().populated_pages == min(PAGES, -(-size // PAGE))
        end = min(size, (PAGES // 2 + 1) * PAGE)
        model = (bytes(PAGES // 2 * PAGE) + b"m" * PAGE)[:end] + bytes(size - end)
        assert bytes(await access.read(bo, 0, size)) == model


async def test_a_cancellation_in_between_leaves_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch)
    async with device() as vdev, sparse(vdev) as bo:
        with trio.CancelScope() as scope:

            async def between(there: int) -> None:
                del there
                scope.cancel()

            await populate(bo, between)
        assert scope.cancelled_caught
        assert (bo.need_tt().populated_pages, bo.need_tt().stock) == (PAGES, None)


@pytest.mark.parametrize("why", ["memory", "limit"])
async def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    small_steps(monkeypatch)
    async with device(memory=8 * MIB) as vdev:
        held = await make(vdev, "held", 7 * MIB if why == "memory" else MIB)
        held.pin()
        async with sparse(vdev) as bo:
            if why == "limit":
                set_user_limit(vdev, "memory=1M")
                set_account(bo, vdev.ttm.accounts.of(1001))
            before = bo.need_tt().populated_pages
            with fails(errno.ENOMEM if why == "memory" else errno.EDQUOT):
                await populate_all(bo, bo.need_tt(), OperationContext(no_wait_gpu=True))
            assert (bo.need_tt().populated_pages, bo.need_tt().stock) == (before, None)


async def test_memory_is_found_in_what_is_not_taken_apart_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch)
    async with device(memory=8 * MIB, swap=0) as vdev:
        bo = await make(vdev, "a", 6 * MIB)
        vdev.destroy_bo(bo)
        assert (vdev.pool.in_use_pages, vdev.pool.leftovers.pages) == (0, 6 * MIB // PAGE)
        # Nobody has had a turn.
        other = vdev.create_bo("b")
        set_size(other, 7 * MIB)
        other.need_tt().populate_range(0, 7 * MIB // PAGE)
        assert not vdev.selfcheck()


async def test_a_device_ends_with_some_left() -> None:
    size = 4 * STEP_PAGES * PAGE
    async with device(memory=2 * size) as vdev:
        bo = await make(vdev, "a", size)
        vdev.destroy_bo(bo)
        assert vdev.pool.leftovers.pages == 4 * STEP_PAGES
        pool = vdev.pool
    # The check at the end of the device has looked, and so taken it apart.
    assert (pool.in_use_pages, pool.leftovers.pages) == (0, 0)


async def test_the_rest_becomes_blocks_when_others_have_had_their_turn() -> None:
    size = 4 * STEP_PAGES * PAGE
    async with device(memory=2 * size) as vdev:
        bo = await make(vdev, "a", size)
        assert bytes(await access.read(bo, 0, PAGE)) == pattern("a", PAGE)
        vdev.destroy_bo(bo)
        left = [vdev.pool.leftovers.pages]
        while vdev.pool.leftovers.pages:
            await trio.lowlevel.checkpoint()
            left.append(vdev.pool.leftovers.pages)
        assert len(left) > 2


def test_there_is_a_lull_when_nothing_was_answered_and_nobody_waits() -> None:
    requests = RequestCounters()
    lull = Lull(requests)
    assert [lull(), lull()] == [False, True]
    requests.write += 1
    assert [lull(), lull()] == [False, True]
    requests.parked[Mock()] = 0
    assert [lull(), lull()] == [False, False]
    requests.parked.clear()
    assert lull()


@given(
    held=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=4),
    # So few at a time that they make no whole piece.
    filled=st.lists(st.tuples(st.integers(0, 299), st.integers(1, 7)), max_size=3),
    step=st.sampled_from([8, 13, 64, 300]),
)
@example(held=[], filled=[(4, 8)], step=8)
@settings(deadline=None, max_examples=150)
def test_a_piece_that_is_no_block_marks_the_tt(
    held: list[tuple[int, int]], filled: list[tuple[int, int]], step: int
) -> None:
    pool = pools.make(1024, beneficial=3)
    for pages, kept in held:
        taken = pool.alloc(min(pages, pool.free_pages)).pages
        pool.free(taken[kept:], split=True)
    tt = TT(pool, 300)
    for first, count in filled:
        tt.populate_range(first, min(count, 300 - first))
    if not tt.begin_fill(300, unlimited=True):
        return
    assert tt.stock is not None
    marked = tt.beneficial_order_failed
    for first in range(0, 300, step):
        tt.fill_from_stock(first, min(first + step, 300), zero=False)
    tt.drop_stock()
    assert tt.is_populated
    assert tt.beneficial_order_failed == (marked or not tt.in_blocks(3, np.arange(300 >> 3)))
    tt.unpopulate()
    pool.check()


def test_holes_that_come_back_in_between_stay_for_the_next_attempt() -> None:
    pool = pools.make(1024)
    tt = TT(pool, 300)
    tt.populate_range(100, 100)
    assert tt.begin_fill(300, unlimited=True)
    tt.depopulate(np.arange(100, 150))
    tt.fill_from_stock(0, 300, zero=True)
    assert (tt.populated_pages, tt.next_hole(0, 300)) == (250, 250)
    tt.drop_stock()
    tt.unpopulate()
    pool.check()
