"""Backup and restore of whole frames of 2 MiB met at every turn of the loop, and while threads work, by requests,
truncates, cancellation and unlink: every byte stays right, and nothing is left."""

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from tests.core.frames import FRAMES, PAGES, SIZE, Bo, content, make
from tests.core.harness import PAGE, device, outcome
from tests.core.stores import (
    HeldStore,
    check_empty,
    held_device,
    store_of,
)
from tests.memory.moved import Moved, count_moves, need_moves
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.memory.arena import FRAME_PAGES
from ttmfs.ttm import access, lifetime

LATE = 1e-6
"""A fault timeout after which every request that had to wait may not wait any more."""

Event = Callable[["Bo"], Awaitable[None]]


@pytest.fixture(autouse=True)
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    need_moves()
    return count_moves(monkeypatch)


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
            restore = a.bo.tt.unfinished
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
            lifetime.set_size(a.bo, 600 * PAGE)
        lifetime.release(a.bo)

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


Call = Callable[[Bo], Awaitable[object]]


async def half_way(vdev: VirtualDevice, store: HeldStore, call: Call, then: Callable[[Bo, trio.Nursery], None]) -> Bo:
    """`then` while a backup or a restore waits in the store; the BO, when it is over."""
    a = await make(vdev)
    if call is Bo.restore:
        await a.backup()
    held, gate = store.held, store.writing if call is Bo.backup else store.reading
    gate.shut()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call, a)
        await store.until_held(held + 1)
        then(a, nursery)
        gate.open()
    return a


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
async def test_unlinked_while_the_store_works(call: Call) -> None:
    async with held_device() as (vdev, store):
        await half_way(vdev, store, call, lambda a, _nursery: lifetime.release(a.bo))
        assert vdev.ttm.num_bos == 0
        check_empty(vdev)


@pytest.mark.parametrize("call", [Bo.backup, Bo.restore], ids=["backup", "restore"])
async def test_cancelled_while_the_store_works(call: Call) -> None:
    async with held_device() as (vdev, store):
        a = await half_way(vdev, store, call, lambda _a, nursery: nursery.cancel_scope.cancel())
        assert not a.bo.resv.locked
        assert vdev.selfcheck() == []
        await a.check()
        await a.gone()
