"""Backup and restore of whole frames of 2 MiB, whose memory changes hands: there and back, with pages that fail, stay
or are missing, two at once, and how much at once; every byte stays right, and nothing is left."""

import errno
import random
from collections.abc import Awaitable, Callable
from itertools import pairwise

import numpy as np
import pytest
import trio
import trio.testing

from tests.core.frames import FRAMES, PAGES, SIZE, Bo, content, make
from tests.core.harness import MIB, PAGE, device, outcome
from tests.core.stores import (
    Allocations,
    fail,
    handles,
    heal,
    held_device,
    same,
    store_of,
)
from tests.memory.host_memory import resident_pages
from tests.memory.moved import Moved, count_moves, need_moves
from ttmfs.driver import calls
from ttmfs.memory.arena import FRAME_PAGES
from ttmfs.memory.stores import ShmemStore
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.store_io import LONG_STEP_PAGES, SHORT_STEP_PAGES


@pytest.fixture(autouse=True)
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    need_moves()
    return count_moves(monkeypatch)


# -- there and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", ["read", "write", "restore", "gtt", "vram"])
async def test_round_trip(back: str, moved: Moved) -> None:
    async with device(vram=16 * MIB) as vdev:
        a = await make(vdev)
        for turn in (1, 2):
            assert await a.backup() == PAGES
            assert moved.out == turn * FRAMES
            assert a.bo.snapshot() == b"b" * PAGES
            assert (vdev.pool.in_use_pages, store_of(vdev).slots.stored) == (0, PAGES)
            if back == "read":
                await a.check()
            elif back == "write":
                await a.write(FRAME_PAGES * PAGE - 1000, b"new" * 1000)
                await a.restore()
                # What was a mixture of old and new pages is whole again.
                assert a.bo.tt is not None
                assert a.bo.tt.page_orders()[9] == FRAMES
            elif back == "restore":
                await a.restore()
                assert moved.back == turn * FRAMES
                assert a.bo.tt is not None
                assert a.bo.tt.page_orders()[9] == FRAMES
            else:
                await calls.validate_bo(vdev, a.bo, vdev.parse_placement([back]), OperationContext())
                assert moved.back == turn * FRAMES
            await a.check()
            if back in ("gtt", "vram"):
                await calls.validate_bo(vdev, a.bo, vdev.parse_placement(["system"]), OperationContext())
            await a.restore()
            assert store_of(vdev).slots.stored == 0
        await a.gone()


async def test_memory_moves_and_none_is_added() -> None:
    """With shmem the arena shrinks by what the store grows, at the same moment."""
    async with device(pool_limit=0) as vdev:
        a = await make(vdev)
        store = store_of(vdev)
        assert isinstance(store, ShmemStore)

        def held() -> tuple[int, int]:
            return resident_pages(vdev.pool.arena), resident_pages(store._arena)

        memory, _ = held()
        assert memory >= PAGES
        await a.backup()
        left, stored = held()
        assert left <= memory - FRAMES * FRAME_PAGES
        assert PAGES <= stored <= PAGES + FRAME_PAGES
        await a.restore()
        again, left = held()
        assert PAGES <= again <= memory + FRAME_PAGES
        assert left <= FRAME_PAGES
        await a.check()
        await a.gone()


async def test_swapout_copies_and_what_it_stored_comes_back_by_frames(moved: Moved) -> None:
    async with device() as vdev:
        a = await make(vdev)
        # It may still fail when all is stored, and then nothing has moved.
        await calls.swapout_one(vdev, a.bo, OperationContext())
        assert a.bo.snapshot() == b"b" * PAGES
        assert moved.out == 0
        await a.restore()
        assert moved.back == FRAMES
        await a.check()
        await a.gone()


async def test_backup_and_restore_with_hardly_any_memory(moved: Moved) -> None:
    async with device(memory=8 * MIB, pool_limit=0) as vdev:
        a, b = await make(vdev, "a", 4 * MIB), vdev.create_bo("b")
        rest = (vdev.pool.free_pages - 64) * PAGE
        await access.write(b, 0, content("b", rest))
        for turn in (1, 2):
            assert await a.backup() == 1024
            assert moved.out == 2 * turn
            await a.restore()
            await a.check()
        await same(b, content("b", rest))
        lifetime.release(b)
        await a.gone()


# -- every page in turn ------------------------------------------------------------------------------------------------

EDGES = [0, 1, 300, 511, 512, 513, 1023, 1024, 1025, 1535, 1536, 1537, PAGES - 1]


@pytest.mark.parametrize("k", EDGES)
async def test_a_page_fails_to_go_out(k: int, moved: Moved) -> None:
    async with device() as vdev:
        a = await make(vdev)
        fail(vdev, "store_write", k)
        if k == 0:
            assert await outcome(a.backup) in (errno.ENOSPC, errno.EBUSY)
        else:
            assert await a.backup() == k
        heal(vdev)
        assert moved.out == min(k // FRAME_PAGES, FRAMES)
        assert a.bo.snapshot() == b"b" * k + b"s" * (PAGES - k)
        assert (vdev.pool.in_use_pages, store_of(vdev).slots.stored) == (PAGES - k, k)
        if k % 2:
            await a.check()
        else:
            await a.restore()
            assert a.bo.snapshot() == b"s" * PAGES
            await a.check()
            assert await a.backup() == PAGES
            await a.check()
        await a.gone()


@pytest.mark.parametrize("k", EDGES)
@pytest.mark.parametrize("then", ["restore", "read", "cut", "unlink"])
async def test_a_page_fails_to_come_back(k: int, then: str) -> None:
    """No page is loaded or allocated twice."""
    async with device() as vdev:
        a = await make(vdev)
        await a.backup()
        taken, loaded = Allocations(vdev), store_of(vdev).pages_in
        fail(vdev, "store_read", k)
        assert await outcome(a.restore) == errno.EIO
        heal(vdev)
        assert a.bo.tt is not None
        assert a.bo.tt.unfinished is not None
        assert a.bo.snapshot() == b"s" * k + b"b" * (PAGES - k)
        assert store_of(vdev).pages_in == loaded + k
        if then == "restore":
            await a.restore()
            assert (taken.pages, store_of(vdev).pages_in) == (PAGES, loaded + PAGES)
        elif then == "cut":
            a.cut(max(0, k * PAGE - 100))
        if then != "unlink":
            await a.check()
        await a.gone()


async def test_the_store_has_room_for_a_frame_and_a_half(moved: Moved) -> None:
    async with device(swap=768 * PAGE) as vdev:
        a = await make(vdev)
        assert await a.backup() == 768
        assert moved.out == 1
        assert a.bo.snapshot() == b"b" * 768 + b"s" * (PAGES - 768)
        await a.check()
        await a.restore()
        await a.gone()


async def test_a_wrong_byte_in_a_frame_costs_that_page_only(moved: Moved) -> None:
    async with device() as vdev:
        a = await make(vdev)
        await a.backup()
        lost = FRAME_PAGES + 77
        store = store_of(vdev)
        assert isinstance(store, ShmemStore)
        store.corrupt(handles(a.bo)[lost])
        assert await outcome(a.restore) == errno.EIO
        assert moved.back == 1
        assert a.bo.snapshot() == b"s" * lost + b"b" * (PAGES - lost)
        a.bo.prefault = 0
        for page in (0, lost - 1, lost, lost + 1, 2 * FRAME_PAGES - 1, 2 * FRAME_PAGES, PAGES - 1):
            got = bytearray()

            async def read(page: int = page, got: bytearray = got) -> None:
                got += await access.read(a.bo, page * PAGE, PAGE)

            assert await outcome(read) == (errno.EIO if page == lost else 0), f"page {page}"
            assert page == lost or got == a.model[page * PAGE : (page + 1) * PAGE]
        # What is lost can be cut off, or written over as a whole.
        a.cut(lost * PAGE)
        await a.check()
        await a.gone()


# -- pages that stay ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["restore", "backup", "write"])
async def test_one_page_inside_a_frame_is_in_memory(then: str, moved: Moved) -> None:
    async with device() as vdev:
        a = await make(vdev)
        await a.backup()
        a.bo.prefault = 0
        inside = FRAME_PAGES + 300
        await a.write(inside * PAGE + 5, b"beside its frame")
        assert a.bo.snapshot() == b"b" * inside + b"s" + b"b" * (PAGES - inside - 1)
        if then == "backup":
            # It takes the slot that it had: the frame is whole again.
            assert await a.backup() == 1
            assert handles(a.bo) == sorted(handles(a.bo))
            await a.restore()
            assert moved.back == FRAMES
        elif then == "restore":
            await a.restore()
            assert moved.back == FRAMES - 1
        else:
            await a.write((inside - 1) * PAGE, b"x" * 3 * PAGE)
        await a.check()
        if then != "write":
            assert a.bo.tt is not None
            assert a.bo.tt.page_orders()[9] == FRAMES
        assert await a.backup() > 0
        assert a.bo.snapshot() == b"b" * PAGES
        await a.check()
        await a.gone()


async def test_a_hole_inside_a_frame() -> None:
    """A frame of the BO that is not all there is stored page by page, and comes back with its hole."""
    async with device() as vdev:
        bo = vdev.create_bo("a")
        lifetime.set_size(bo, SIZE)
        bo.prefault = 0
        a = Bo(vdev, bo, bytearray(SIZE))
        await a.write(0, content("a", 300 * PAGE))
        await a.write(301 * PAGE, content("b", 1000 * PAGE))
        await a.backup()
        await a.check()
        await a.backup()
        await a.restore()
        await a.check()
        await a.gone()


# -- two of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_two_at_once(seed: int, moved: Moved) -> None:
    """One goes while the other comes, with WRITEs and truncates beside; frames and slots change hands all the time."""
    rng = random.Random(seed)
    async with device(memory=24 * MIB, swap=24 * MIB) as vdev:
        both = [await make(vdev, "a"), await make(vdev, "b")]

        async def client(bo: Bo) -> None:
            for _ in range(6):
                offset = rng.randrange(SIZE - 3 * PAGE)
                await bo.write(offset, rng.randbytes(rng.choice((1, PAGE, 3 * PAGE))))
                if rng.random() < 0.2:
                    bo.cut(rng.randrange(SIZE))
                for _ in range(rng.randrange(4)):
                    await trio.lowlevel.checkpoint()

        for turn in range(8):
            with trio.fail_after(30):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(outcome, both[turn % 2].backup)
                    nursery.start_soon(outcome, both[1 - turn % 2].restore)
                    if turn % 4 > 1:
                        for bo in both:
                            nursery.start_soon(client, bo)
            for bo in both:
                await bo.check()
            if turn % 4 == 3:
                for bo in both:
                    await bo.restore()
        assert moved.out
        assert moved.back
        lifetime.release(both[0].bo)
        await both[1].gone()


async def test_a_write_behind_the_end_finds_memory_that_others_hold_while_its_bo_is_stored() -> None:
    """Beside a copy too: what can be had from others is not refused."""
    async with held_device(memory=8 * MIB, pool_limit=0) as (vdev, store):
        a = await make(vdev, "a", 4 * MIB)
        b = vdev.create_bo("b")
        rest = vdev.pool.free_pages * PAGE
        await access.write(b, 0, content("b", rest))
        assert vdev.pool.free_pages == 0
        store.writing.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.backup)
            await store.until_held()
            nursery.start_soon(a.write, 4 * MIB, content("c", MIB))
            await trio.testing.wait_all_tasks_blocked(0.01)
            store.writing.open()
        await a.check()
        await same(b, content("b", rest))
        lifetime.release(b)
        await a.gone()


# -- how much at once --------------------------------------------------------------------------------------------------


def record_steps(store: ShmemStore, on_step: Callable[[], None]) -> list[int]:
    """Pages of each transfer from now on; `on_step` runs with each."""
    sizes: list[int] = []
    begin_store, begin_load = store.begin_store, store.begin_load

    def storing(count: int, **how: bool) -> object:
        sizes.append(count)
        on_step()
        return begin_store(count, **how)

    def loading(some: np.ndarray, **how: bool) -> object:
        sizes.append(len(some))
        on_step()
        return begin_load(some, **how)

    store.begin_store, store.begin_load = storing, loading  # type: ignore[method-assign, assignment]
    return sizes


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
async def test_steps_are_long_while_nobody_asks_and_short_when_somebody_does(
    call: Callable[[Bo], Awaitable[object]],
) -> None:
    async with device(memory=128 * MIB, swap=128 * MIB) as vdev:
        a = await make(vdev, "a", 48 * MIB)
        if call is Bo.restore:
            await a.backup()
        store = store_of(vdev)
        assert isinstance(store, ShmemStore)
        requests = vdev.ttm.counters.requests
        asked = False

        def on_step() -> None:
            # As the file system counts them when they arrive.
            requests.read += asked

        sizes = record_steps(store, on_step)
        await call(a)
        assert sum(sizes) == 12288
        assert sizes[0] == SHORT_STEP_PAGES
        assert max(sizes) == LONG_STEP_PAGES
        assert all(later <= 2 * earlier for earlier, later in pairwise(sizes))
        assert all(size % FRAME_PAGES == 0 for size in sizes), "no step cuts a frame"
        await (a.restore() if call is Bo.backup else a.backup())
        sizes.clear()
        asked = True
        await call(a)
        assert sizes == [SHORT_STEP_PAGES] * (12288 // SHORT_STEP_PAGES)
        await a.check()
        await a.gone()


async def test_loose_pages_do_not_cost_the_frames_behind_them(moved: Moved) -> None:
    """A BO of more than is looked through at once, with a hole in the first part of it."""
    async with device(memory=128 * MIB, swap=128 * MIB) as vdev:
        bo = vdev.create_bo("a")
        size = 100 * MIB
        lifetime.set_size(bo, size)
        bo.prefault = 0
        a = Bo(vdev, bo, bytearray(size))
        await a.write(0, content("a", 5 * PAGE))
        await a.write(6 * PAGE, content("b", 2 * MIB - 6 * PAGE))
        for offset in range(2 * MIB, size, 14 * MIB):
            await a.write(offset, content("c", 14 * MIB))
        assert bo.tt is not None
        assert bo.tt.page_orders()[9] == 49
        assert await a.backup() == size // PAGE - 1
        assert moved.out == 49
        await a.restore()
        assert moved.back >= 49
        await a.check()
        await a.gone()
