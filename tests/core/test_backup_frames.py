"""Backup and restore of whole frames of 2 MiB, whose memory changes hands: met at every point by requests, truncates,
failures, cancellation and unlink; every byte stays right, and nothing is left."""

import errno
import random
from collections.abc import Awaitable, Callable
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import trio
import trio.testing

from tests.core.harness import MIB, PAGE, device
from tests.core.stores import (
    Allocations,
    check_empty,
    fail,
    handles,
    heal,
    held_device,
    noise,
    same,
    store_of,
)
from tests.memory.host_memory import resident_pages
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.frames import FRAME_PAGES, can_move
from ttmfs.memory.stores import ShmemStore, shmem
from ttmfs.ttm import access
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.swap_io import LONG_STEP_PAGES, SHORT_STEP_PAGES

FRAMES = 3
PAGES = FRAMES * FRAME_PAGES + 100
"""A tail that is no frame, too."""
SIZE = PAGES * PAGE
LATE = 1e-6
"""A fault timeout after which every request that had to wait may not wait any more."""

Event = Callable[["Bo"], Awaitable[None]]


class Moved:
    """Frames that changed hands: into the store and out of it."""

    def __init__(self) -> None:
        self.out = self.back = 0


@pytest.fixture(autouse=True)
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    count, real = Moved(), shmem.move_frame
    pair = Arena("a", FRAME_PAGES), Arena("b", FRAME_PAGES)
    if not can_move(*pair):
        pytest.skip("this host does not move frames (Linux before 5.7)")
    for arena in pair:
        arena.close()

    def move(dst: Arena, dst_page: int, src: Arena, src_page: int) -> None:
        if dst.name == "shmem store":
            count.out += 1
        else:
            count.back += 1
        real(dst, dst_page, src, src_page)

    monkeypatch.setattr(shmem, "move_frame", move)
    return count


@cache
def content(name: str, size: int) -> bytes:
    return noise(name, size)


class Bo:
    """A BO in whole frames, and what its bytes must be."""

    def __init__(self, vdev: VirtualDevice, bo: BufferObject, model: bytearray) -> None:
        self.vdev, self.bo, self.model = vdev, bo, model

    async def backup(self) -> int:
        flags = BackupFlags()
        out: int = (await calls.backup_one(self.vdev, self.bo, flags, OperationContext()))["pages_out"]
        return out

    async def restore(self) -> None:
        await calls.restore(self.vdev, self.bo, OperationContext())

    async def write(self, offset: int, data: bytes) -> None:
        self.model[offset : offset + len(data)] = data
        await access.write(self.bo, offset, data)

    def cut(self, offset: int) -> None:
        """Truncate, and grow again."""
        size = len(self.model)
        self.vdev.ttm.set_size(self.bo, offset)
        self.vdev.ttm.set_size(self.bo, size)
        self.model[offset:] = bytes(size - offset)

    async def check(self) -> None:
        await same(self.bo, bytes(self.model))

    async def gone(self) -> None:
        """Unlinked: nothing is left of it, nor of others."""
        self.vdev.ttm.release(self.bo)
        with trio.fail_after(10):
            while self.vdev.ttm.num_bos:
                await trio.sleep(0.001)
        check_empty(self.vdev)
        assert self.vdev.selfcheck() == []
        store = store_of(self.vdev)
        assert isinstance(store, ShmemStore)
        with trio.fail_after(10):
            # What is just being given back counts as used.
            while store.slots.used or store.waste:
                store.writeback()
                await trio.sleep(0.001)
        store.check()
        assert resident_pages(store._arena) == 0


async def make(vdev: VirtualDevice, name: str = "a", size: int = SIZE) -> Bo:
    """A BO full of noise, in as large blocks as there are."""
    bo = vdev.create_bo(name)
    vdev.ttm.set_size(bo, size)
    await access.write(bo, 0, content(name, size))
    assert bo.tt is not None
    assert bo.tt.page_orders().get(9, 0) == size // (2 * MIB)
    return Bo(vdev, bo, bytearray(content(name, size)))


async def outcome(call: Callable[[], Awaitable[object]]) -> int:
    """The errno that a call fails with, 0 for none."""
    try:
        await call()
    except TtmError as error:
        return error.errno or -1
    return 0


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
        vdev.ttm.release(b)
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
        assert a.bo.tt.restore is not None
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
        vdev.ttm.set_size(bo, SIZE)
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


# -- somebody comes in between -----------------------------------------------------------------------------------------


async def read_event(a: Bo) -> None:
    offset = (FRAME_PAGES - 2) * PAGE + 3
    expected = bytes(a.model[offset : offset + 4 * PAGE])
    assert bytes(await access.read(a.bo, offset, 4 * PAGE)) == expected


async def write_event(a: Bo) -> None:
    await a.write((FRAME_PAGES - 1) * PAGE + 100, b"between two frames " * 400)
    await read_event(a)


async def far_event(a: Bo) -> None:
    """In the last frame, and in the tail."""
    await a.write((FRAMES * FRAME_PAGES - 1) * PAGE + 7, b"END" * 2 * PAGE)
    assert bytes(await access.read(a.bo, SIZE - PAGE, PAGE)) == a.model[-PAGE:]


async def cut_event(a: Bo) -> None:
    a.cut(700 * PAGE + 100)


async def cut_and_write_event(a: Bo) -> None:
    a.cut(FRAME_PAGES * PAGE)
    await a.write((FRAME_PAGES + 20) * PAGE, content("c", 3 * PAGE))
    a.cut((FRAME_PAGES + 21) * PAGE + 1)


async def unmap_event(a: Bo) -> None:
    await calls.unmap(a.vdev, a.bo, 0, 0)


EVENTS = [read_event, write_event, far_event, cut_event, cut_and_write_event, unmap_event]


async def at_every_turn(
    vdev: VirtualDevice,
    call: Callable[[Bo], Awaitable[object]],
    event: Callable[[Bo, trio.CancelScope], Awaitable[None]],
    *,
    unlinks: bool = False,
) -> int:
    """A call on a fresh BO, met by `event` after 0, 1, 2, … turns of the loop, until it is over by then; how many."""
    for turns in range(500):
        a = await make(vdev)
        if call is not Bo.backup:
            await a.backup()
        begun, over = trio.Event(), False

        async def run(a: Bo = a, begun: trio.Event = begun) -> None:
            nonlocal over
            begun.set()
            await outcome(lambda: call(a))
            over = True

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await begun.wait()
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                over_before = over
                await event(a, nursery.cancel_scope)
        if not unlinks:
            assert vdev.selfcheck() == []
            assert a.bo.tt is not None
            restore = a.bo.tt.restore
            held = 0 if restore is None else len(restore.pages)
            assert vdev.pool.in_use_pages == a.bo.tt.populated_pages + held
            assert store_of(vdev).slots.stored == a.bo.tt.backed_up_pages
            if turns % 3 == 1:
                await outcome(a.backup)
            elif turns % 3 == 2:
                await a.restore()
            await a.check()
            await a.gone()
        else:
            with trio.fail_after(10):
                while vdev.ttm.num_bos:
                    await trio.sleep(0.001)
            check_empty(vdev)
        if over_before:
            return turns
    raise AssertionError("it never ends")


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
@pytest.mark.parametrize(
    ("event", "timeout"),
    [(event, 15.0) for event in EVENTS]
    # Pages that were cut off have no memory, and a WRITE to these may fail when its time is up.
    + [(event, LATE) for event in EVENTS if event is not cut_and_write_event],
)
async def test_met_at_every_turn_of_the_loop(
    event: Event, call: Callable[[Bo], Awaitable[object]], timeout: float, moved: Moved
) -> None:
    async def meet(a: Bo, _scope: trio.CancelScope) -> None:
        await event(a)

    async with device(fault_timeout=timeout) as vdev:
        turns = await at_every_turn(vdev, call, meet)
        assert turns > 5
    assert moved.out
    assert moved.back


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
async def test_cancelled_at_every_turn_of_the_loop(call: Callable[[Bo], Awaitable[object]]) -> None:
    async def cancel(_bo: Bo, scope: trio.CancelScope) -> None:
        scope.cancel()

    async with device() as vdev:
        assert await at_every_turn(vdev, call, cancel) > 5


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
@pytest.mark.parametrize("cut", [False, True])
async def test_unlinked_at_every_turn_of_the_loop(call: Callable[[Bo], Awaitable[object]], cut: bool) -> None:
    async def unlink(a: Bo, _scope: trio.CancelScope) -> None:
        if cut:
            vdev.ttm.set_size(a.bo, 600 * PAGE)
        vdev.ttm.release(a.bo)

    async with device() as vdev:
        assert await at_every_turn(vdev, call, unlink, unlinks=True) > 5


# -- held in threads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, PAGE, FRAME_PAGES * PAGE - 1, FRAME_PAGES * PAGE, 700 * PAGE + 5, SIZE - 1])
@pytest.mark.parametrize("way", ["out", "back"])
@pytest.mark.parametrize("fresh", [False, True])
async def test_cut_while_the_store_works(cut: int, way: str, fresh: bool, moved: Moved) -> None:
    async with held_device() as (vdev, store):
        a = await make(vdev)
        gate = store.writing
        if way == "back":
            await a.backup()
            gate = store.reading
        gate.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcome, a.backup if way == "out" else a.restore)
            await store.until_held()
            a.cut(cut)
            gate.open()
            if fresh:
                # Bytes beside those that are on their way.
                await a.write(1000 * PAGE, b"fresh" * PAGE)
        assert way == "out" or moved.back
        await a.check()
        await outcome(a.backup)
        await a.check()
        await a.gone()


async def test_a_late_read_overtakes_a_frame(moved: Moved) -> None:
    async with held_device(fault_timeout=0.05) as (vdev, store):
        a = await make(vdev)
        await a.backup()
        store.reading.shut()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.restore)
            await store.until_held()
            await read_event(a)
            # They are in memory, and a WRITE changes them there; the frame still comes.
            await a.write(FRAME_PAGES * PAGE, b"overtaken")
            assert a.bo.snapshot().count(b"s") >= 2
            assert store.slots.stored == PAGES
            store.reading.open()
        assert moved.back == FRAMES
        assert store.slots.stored == 0
        assert vdev.pool.in_use_pages == PAGES
        await a.check()
        await a.gone()


@pytest.mark.parametrize("always", [False, True])
async def test_a_late_request_keeps_frames_in_memory(always: bool, moved: Moved) -> None:
    """What it was given, or has written, is not what was summed: nothing of that step goes."""
    async with held_device(fault_timeout=0.01) as (vdev, store):
        a = await make(vdev)
        store.writing.shut()
        result: list[int] = []

        async def go() -> None:
            result.append(await outcome(a.backup))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(go)
            asked = 0
            with trio.fail_after(30):
                while not result:
                    if store.held == asked:
                        await trio.sleep(0.001)
                        continue
                    asked += 1
                    if always or asked == 1:
                        await write_event(a)
                        await far_event(a)
                        assert not moved.out
                    store.writing.step()
        assert result == [errno.EBUSY if always else 0]
        assert a.bo.snapshot() == (b"s" if always else b"b") * PAGES
        await a.check()
        await a.gone()


async def test_unlinked_while_the_store_works() -> None:
    async with held_device() as (vdev, store):
        for gate, call in ((store.writing, Bo.backup), (store.reading, Bo.restore)):
            a = await make(vdev)
            if call is Bo.restore:
                await a.backup()
            held = store.held
            gate.shut()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, a)
                await store.until_held(held + 1)
                vdev.ttm.release(a.bo)
                gate.open()
            assert vdev.ttm.num_bos == 0
            check_empty(vdev)


async def test_cancelled_while_the_store_works(moved: Moved) -> None:
    async with held_device() as (vdev, store):
        for gate, call in ((store.writing, Bo.backup), (store.reading, Bo.restore)):
            a = await make(vdev)
            if call is Bo.restore:
                await a.backup()
            held = store.held
            gate.shut()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call, a)
                await store.until_held(held + 1)
                nursery.cancel_scope.cancel()
                gate.open()
            assert not a.bo.resv.locked
            assert vdev.selfcheck() == []
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
        vdev.ttm.release(both[0].bo)
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
        vdev.ttm.release(b)
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
        vdev.ttm.set_size(bo, size)
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
