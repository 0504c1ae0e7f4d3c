"""ShmemStore and what is given to it, or taken from it, in whole frames: the same results as by copying."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.memory.framestore import FRAMES, SIZE, Store, fill, frame, loose, scratch
from tests.memory.host_memory import resident_pages
from tests.memory.moved import Moved
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.units import PAGE_SIZE

# -- there and back ----------------------------------------------------------------------------------------------------


def test_whole_frames_change_hands(arena: Arena, store: Store, moved: Moved, moving: bool) -> None:
    given = frame(4, 1, 5)
    before = arena.mem.copy()
    transfer = store.store.begin_store(len(given), gives=True)
    store.store.write(transfer, arena, given)
    assert (arena.mem == before).all(), "until it ends everybody finds the bytes where they were"
    assert not moved.out
    handles = store.store.end_store(transfer)
    assert moved.out == (3 if moving else 0)
    assert resident_pages(store.store._arena) == 3 * FRAME_PAGES
    assert resident_pages(arena) == (FRAMES - moved.out) * FRAME_PAGES
    store.model = dict(zip(handles.tolist(), before[given], strict=True))
    for untouched in (0, 2, 3):
        assert (arena.mem[frame(untouched)] == before[frame(untouched)]).all()
    store.check()
    assert store.take(arena, handles, frame(0, 5, 2)) == 3 * FRAME_PAGES
    assert moved.back == (3 if moving else 0)
    assert (arena.mem[frame(3)] == before[frame(3)]).all()
    assert resident_pages(store.store._arena) == 0
    assert store.store.waste == 0


def test_what_has_changed_hands_left_no_memory_to_give_back(arena: Arena, store: Store, moving: bool) -> None:
    """Frames that were taken are no waste, and nobody is asked to look after them; copied pages are."""
    handles = store.give(arena, np.concatenate((frame(0, 1), loose(4 * FRAME_PAGES, 30))))
    rows = np.array([store.model.pop(handle) for handle in handles.tolist()])
    to = np.concatenate((frame(3, 2), loose(1, 30)))
    transfer = store.store.begin_load(handles, takes=True)
    store.store.read(transfer, arena, to)
    assert store.store.end_load(transfer) == len(handles)
    store.store.drop(handles, upkeep=False)
    assert (arena.mem[to] == rows).all()
    store.store.check()
    assert store.store.waste == (30 if moving else len(handles)) * PAGE_SIZE


@pytest.mark.parametrize("shift", [1, 511])
def test_what_does_not_begin_with_a_frame_is_copied(arena: Arena, store: Store, moved: Moved, shift: int) -> None:
    handles = store.give(arena, frame(0, 1, shift=shift))
    store.check()
    assert store.take(arena, handles, frame(3, 4)) == 2 * FRAME_PAGES
    assert (moved.out, moved.back) == (0, 2)
    handles = store.give(arena, frame(3, 4))
    assert moved.out == 2
    store.take(arena, handles, frame(0, 1, shift=shift))
    assert moved.back == 2


def test_a_frame_whose_pages_are_in_another_order_is_copied(arena: Arena, store: Store, moved: Moved) -> None:
    pages = frame(2)
    pages[[7, 8]] = pages[[8, 7]]
    handles = store.give(arena, pages)
    assert not moved.out
    store.take(arena, handles[::-1].copy(), frame(1)[::-1].copy())
    assert not moved.back


def test_frames_and_loose_pages_together(arena: Arena, store: Store, moved: Moved, moving: bool) -> None:
    given = np.concatenate((frame(0), loose(FRAME_PAGES + 5, FRAME_PAGES), frame(4), loose(3 * FRAME_PAGES + 9, 77)))
    handles = store.give(arena, given)
    assert moved.out == 2 * moving
    store.check()
    order = np.concatenate((handles[-30:], handles[: 3 * FRAME_PAGES]))
    to = np.concatenate((loose(5 * FRAME_PAGES + 50, 30), frame(3), frame(1, shift=1), frame(0)))
    assert store.take(arena, order, to) == len(order)
    assert moved.back == 2 * moving
    assert len(store.model) == 47
    store.check()
    store.look(scratch(), handles[3 * FRAME_PAGES : -30])


PART = st.one_of(st.just((0, FRAME_PAGES)), st.tuples(st.integers(0, 511), st.integers(1, FRAME_PAGES)))
"""Of a frame: all of it, mostly; or some of its pages, backwards when the second number is the smaller one."""


@settings(deadline=None, max_examples=25)
@given(
    st.permutations(range(FRAMES)),
    st.lists(PART, min_size=1, max_size=FRAMES),
    st.lists(st.integers(0, FRAMES * FRAME_PAGES - 1), max_size=3),
    st.sampled_from([SIZE, 5 << 20, (5 << 20) + 12288]),
    st.integers(0, 99),
)
def test_any_pages_come_back_as_they_were(
    order: list[int], parts: list[tuple[int, int]], changed: list[int], size: int, seed: int
) -> None:
    """Twice, so that the second time the store has memory that was used, and others have taken its slots."""
    memory, target, store = Arena("memory", FRAMES * FRAME_PAGES), scratch(SIZE // PAGE_SIZE), Store(size)
    rng = np.random.default_rng(seed)
    some = [
        np.arange(begin, end, 1 if begin < end else -1) + number * FRAME_PAGES
        for number, (begin, end) in zip(order, parts, strict=False)
    ]
    pages = np.concatenate(some).astype(np.uint32)
    unchanged = ~np.isin(np.arange(len(pages)), changed)
    for turn in range(2):
        fill(memory, seed + turn)
        before = memory.mem.copy()
        room = store.store.slots.free
        if not len(pages) or not room:
            break
        handles = store.give(memory, pages, unchanged)
        assert len(handles) == min(len(pages), room)
        stored = np.zeros(len(pages), bool)
        stored[: len(handles)] = handles != 0
        assert not stored[~unchanged].any()
        rest = np.setdiff1d(np.arange(memory.num_pages), pages[stored])
        assert (memory.mem[rest] == before[rest]).all(), "what is not stored is where it was"
        near = np.flatnonzero(~unchanged) // FRAME_PAGES
        for at in np.flatnonzero(~stored[: len(handles)] & unchanged[: len(handles)]).tolist():
            assert at // FRAME_PAGES in near, f"page {at} of the transfer did not go, and none of its frame has changed"
        store.check()
        handles = handles[handles != 0]
        if turn == 0:
            back = handles[len(handles) // 3 :]
            store.take(memory, back, pages[: len(back)])
        elif store.model:
            everything = np.array(sorted(store.model), np.uint32)
            everything = rng.permutation(everything) if seed & 1 else everything
            store.take(target, everything, loose(0, len(everything)))
        store.check()
    store.end()
    memory.close()
    target.close()


# -- what changed meanwhile --------------------------------------------------------------------------------------------


def test_of_a_frame_that_has_changed_nothing_is_stored(arena: Arena, store: Store, moved: Moved, moving: bool) -> None:
    before = arena.mem.copy()
    given = np.concatenate((frame(3, 1, 2), loose(5 * FRAME_PAGES + 3, 20)))
    unchanged = np.ones(len(given), bool)
    unchanged[[FRAME_PAGES + 100, 3 * FRAME_PAGES + 4]] = False
    handles = store.give(arena, given, unchanged)
    gone = np.flatnonzero(handles == 0)
    expected = [*range(FRAME_PAGES, 2 * FRAME_PAGES), 3 * FRAME_PAGES + 4] if moving else np.flatnonzero(~unchanged)
    assert gone.tolist() == list(expected)
    assert moved.out == 2 * moving
    assert (arena.mem[given[gone]] == before[given[gone]]).all()
    assert store.store.slots.used == len(given) - gone.size
    store.check()
    store.take(scratch(), handles[handles != 0], loose(0, len(given) - gone.size))
    # Its slots hold other pages next.
    again = store.give(arena, frame(1, 4))
    assert (again != 0).all()
    assert moved.out == 4 * moving


def test_nothing_is_unchanged(arena: Arena, store: Store, moved: Moved) -> None:
    before = arena.mem.copy()
    handles = store.give(arena, frame(0, 1), np.zeros(2 * FRAME_PAGES, bool))
    assert not handles.any()
    assert len(handles) == 2 * FRAME_PAGES
    assert not moved.out
    assert (arena.mem == before).all()
    store.check()


def test_two_at_once_end_in_the_other_order(arena: Arena, store: Store, moved: Moved, moving: bool) -> None:
    rows = arena.mem.copy()
    transfers = []
    for pages in (frame(0, 1), frame(2, 3)):
        transfer = store.store.begin_store(len(pages), gives=True)
        store.store.write(transfer, arena, pages)
        transfers.append((transfer, pages))
    for transfer, pages in transfers[::-1]:
        handles = store.store.end_store(transfer)
        store.model.update(zip(handles.tolist(), rows[pages], strict=True))
    assert moved.out == 4 * moving
    handles = np.array(list(store.model), np.uint32)
    first, second = handles[: 2 * FRAME_PAGES], handles[2 * FRAME_PAGES :]
    loads = []
    for some, to in ((first, frame(5, 0)), (second, frame(1, 2))):
        load = store.store.begin_load(some, takes=True)
        store.store.read(load, arena, to)
        loads.append((load, some, to))
    for load, some, to in loads[::-1]:
        assert store.store.end_load(load) == len(some)
        store.store.drop(some)
        for handle, page in zip(some.tolist(), to.tolist(), strict=True):
            assert (arena.mem[page] == store.model.pop(handle)).all()
    assert moved.back == 4 * moving


# -- while others look -------------------------------------------------------------------------------------------------


def test_who_only_looks_may_do_so_while_another_takes(arena: Arena, store: Store, moved: Moved, moving: bool) -> None:
    """As a READ that may not wait does with what a restore is about to bring."""
    handles = store.give(arena, frame(0, 3))
    load = store.store.begin_load(handles, takes=True)
    store.store.read(load, arena, frame(1, 2))
    store.look(scratch(), handles)
    assert store.store.end_load(load) == len(handles)
    store.store.drop(handles)
    assert moved.back == 2 * moving
    for handle, page in zip(handles.tolist(), frame(1, 2).tolist(), strict=True):
        assert (arena.mem[page] == store.model.pop(handle)).all()


def test_a_load_that_does_not_take_moves_nothing(arena: Arena, store: Store, moved: Moved) -> None:
    handles = store.give(arena, frame(0))
    for _ in range(2):
        store.look(scratch(), handles)
    before = arena.mem[frame(1)].copy()
    copied = store.store.store(arena, frame(1))
    store.model.update(zip(copied.tolist(), before, strict=True))
    assert (arena.mem[frame(1)] == before).all()
    assert (moved.out, moved.back) == (1, 0)
    store.look(scratch(), np.concatenate((handles, copied)))
