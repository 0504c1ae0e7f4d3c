"""ShmemStore and whole frames when something fails: on the way out, on the way back, with others in between."""

import errno

import numpy as np
import pytest

from tests.memory.framestore import Pages, Store, frame, loose, scratch
from tests.memory.host_memory import resident_pages
from tests.memory.moved import Moved
from ttmfs.errors import TtmError
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.stores import LoadError, shmem
from ttmfs.units import PAGE_SIZE

EDGES = [0, 1, 300, 511, 512, 513, 700, 1023, 1024, 1025, 1100, 1535, 1536, 1537, 1599]


@pytest.mark.parametrize("at", EDGES)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_page_that_cannot_be_written(
    arena: Arena, store: Store, moved: Moved, moving: bool, at: int, code: int
) -> None:
    """Before, in and behind frames: a full medium keeps the pages before it, any other error none."""
    before = arena.mem.copy()
    given = np.concatenate((frame(2), loose(3 * FRAME_PAGES + 1, FRAME_PAGES), frame(5), loose(0, 64)))
    store.store.fail_write = lambda number: code if number == at else 0
    if at == 0 or code == errno.EIO:
        with pytest.raises(TtmError) as caught:
            store.give(arena, given)
        assert caught.value.errno == code
        stored = 0
    else:
        handles = store.give(arena, given)
        stored = at
        assert len(handles) == stored
    assert moved.out == moving * ((stored >= 512) + (stored >= 1536))
    left = given[stored:]
    assert (arena.mem[left] == before[left]).all()
    store.check()
    assert store.store.slots.free == store.store.slots.num_slots - stored
    if stored:
        store.take(scratch(), handles, loose(0, stored))


def test_room_for_one_frame_and_a_half(arena: Arena, moved: Moved, moving: bool) -> None:
    store = Store(768 * PAGE_SIZE)
    before = arena.mem.copy()
    handles = store.give(arena, frame(1, 2))
    assert len(handles) == 768
    assert moved.out == moving
    assert (arena.mem[frame(2)[256:]] == before[frame(2)[256:]]).all()
    with pytest.raises(TtmError) as caught:
        store.give(arena, frame(3))
    assert caught.value.errno == errno.ENOSPC
    assert (arena.mem[frame(3)] == before[frame(3)]).all()
    store.check()
    store.take(arena, handles, np.concatenate((frame(0), loose(4 * FRAME_PAGES, 256))))
    assert moved.back == moving
    store.end()


@pytest.mark.parametrize("pages", [frame(0), frame(0, 1, 2)], ids=["short", "long"])
@pytest.mark.parametrize("sums", [1, 2, 3, 4])
def test_a_write_that_breaks_off_stores_what_is_there(
    arena: Arena, store: Store, moved: Moved, monkeypatch: pytest.MonkeyPatch, pages: Pages, sums: int
) -> None:
    """The medium runs out between two steps, perhaps inside a frame: no handle for what has not been taken."""
    before, real, calls = arena.mem.copy(), shmem.page_sums, []  # type: ignore[attr-defined]

    def full(*args: object) -> None:
        calls.append(1)
        if len(calls) == sums:
            raise OSError(errno.ENOSPC, "no room, says the test")
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shmem, "page_sums", full)
    handles = loose(0, 0)
    try:
        handles = store.give(arena, pages)
    except TtmError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017 - or some of it was stored
    monkeypatch.undo()
    assert len(handles) < len(pages) or len(calls) < sums
    assert (arena.mem[pages[len(handles) :]] == before[pages[len(handles) :]]).all()
    store.check()
    if len(handles):
        store.look(scratch(), handles)


def test_cancelled_after_it_was_written(arena: Arena, store: Store, moved: Moved) -> None:
    before = arena.mem.copy()
    transfer = store.store.begin_store(2 * FRAME_PAGES + 9, gives=True)
    store.store.write(transfer, arena, np.concatenate((frame(0, 1), loose(4 * FRAME_PAGES, 9))))
    store.store.cancel_store(transfer)
    assert (arena.mem == before).all()
    assert not moved.out
    assert store.store.slots.used == 0
    store.check()
    store.store.writeback()
    assert store.store.waste == 0
    assert resident_pages(store.store._arena) == 0


def test_stopped_between_two_bits(arena: Arena, store: Store, moved: Moved) -> None:
    """Who does it bit by bit may stop anywhere; nothing has changed hands before the end."""
    before = arena.mem.copy()
    given = np.concatenate((frame(0, 1), loose(4 * FRAME_PAGES, 9)))
    counted = store.store.begin_store(len(given))
    bits = 1 + sum(1 for _ in store.store.write_steps(counted, arena, given))
    store.store.cancel_store(counted)
    for stop in range(bits):
        transfer = store.store.begin_store(len(given), gives=True)
        for at, _ in enumerate(store.store.write_steps(transfer, arena, given)):
            if at == stop:
                break
        store.store.cancel_store(transfer)
        assert not moved.out
    assert (arena.mem == before).all()
    handles = store.give(arena, given)
    memory = scratch()
    for stop in range(3):
        load = store.store.begin_load(handles, takes=True)
        for at, _ in enumerate(store.store.read_steps(load, memory, loose(0, len(given)))):
            if at == stop:
                break
        load.error, load.loaded = TtmError(errno.EINTR, "stopped"), 0
        with pytest.raises(LoadError):
            store.store.end_load(load)
        assert not moved.back
    store.take(memory, handles, loose(0, len(given)))


@pytest.mark.parametrize("at", [0, 5, 511])
def test_a_wrong_byte_in_a_frame(arena: Arena, store: Store, moved: Moved, moving: bool, at: int) -> None:
    """What lies before it comes back right; neither its frame nor the next one moves; what did not come stays."""
    handles = store.give(arena, np.concatenate((frame(0, 1, 2), loose(5 * FRAME_PAGES, 40))))
    moved.out = 0
    order = np.concatenate((handles[-20:], handles[: 3 * FRAME_PAGES], handles[-40:-20]))
    lost = 20 + FRAME_PAGES + at
    store.store.corrupt(int(order[lost]), offset=4095, flip=0x40)
    memory = scratch()
    to = np.concatenate((loose(5 * FRAME_PAGES + 1, 20), frame(1, 3, 0), loose(4 * FRAME_PAGES, 20)))
    with pytest.raises(LoadError) as caught:
        store.take(memory, order, to)
    assert (caught.value.errno, caught.value.loaded) == (errno.EIO, lost)
    assert str(order[lost]) in caught.value.message
    assert (moved.out, moved.back) == (0, moving)
    assert not memory.mem[to[lost:]].any(), "what did not come back is not there"
    store.check()
    rest = np.delete(order[lost:], 0)
    store.look(scratch(), rest)
    with pytest.raises(LoadError) as caught:
        store.take(scratch(), order[lost : lost + 1], loose(0, 1))
    assert caught.value.errno == errno.EIO
    store.take(memory, rest, loose(1, len(rest)))


@pytest.mark.parametrize("at", [0, 1, 511, 512, 513, 1000, 1023])
def test_a_page_that_cannot_be_read(arena: Arena, store: Store, moved: Moved, moving: bool, at: int) -> None:
    handles = store.give(arena, frame(4, 2))
    store.store.fail_read = lambda number: number == at
    memory = scratch()
    with pytest.raises(LoadError) as caught:
        store.take(memory, handles, frame(1, 0))
    assert (caught.value.errno, caught.value.loaded) == (errno.EIO, at)
    assert moved.back == moving * (at >= 512)
    store.store.fail_read = None
    store.check()
    store.look(scratch(), handles[at:])
    store.take(memory, handles[at:], np.concatenate((frame(1, 0)[at:],)))


def test_a_host_that_refuses_now_and_then(
    arena: Arena, store: Store, moved: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mremap fails for every second frame: these are copied when the transfer ends."""
    from ttmfs.memory import frames  # noqa: PLC0415 - only here

    real, calls = frames._mremap, []

    def refuse(*args: int) -> int | None:
        calls.append(1)
        return frames._FAILED if len(calls) % 2 else real(*args)

    monkeypatch.setattr(frames, "_mremap", refuse)
    handles = store.give(arena, frame(0, 1, 2, 3))
    store.check()
    store.take(arena, handles, frame(5, 3, 4, 2))
    assert (moved.out, moved.back, len(calls)) == (4, 4, 8)
