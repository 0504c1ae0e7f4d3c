"""ShmemStore and what is given to it, or taken from it, in whole frames: the same results as by copying."""

import errno
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.memory.host_memory import resident_pages
from tests.memory.moved import Moved, count_moves, need_moves
from ttmfs.errors import TtmError
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.stores import LoadError, ShmemStore, shmem
from ttmfs.memory.stores.slots import TOUCHED
from ttmfs.units import PAGE_SIZE

FRAMES = 6
SIZE = 16 << 20
Pages = np.ndarray[tuple[int], np.dtype[np.uint32]]


def frame(*numbers: int, shift: int = 0) -> Pages:
    """The pages of these frames, in order."""
    parts = [np.arange(n * FRAME_PAGES + shift, (n + 1) * FRAME_PAGES + shift, dtype=np.uint32) for n in numbers]
    return np.concatenate(parts)


def loose(first: int, count: int) -> Pages:
    return np.arange(first, first + count, dtype=np.uint32)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Moved:
    return count_moves(monkeypatch)


@pytest.fixture(params=["moving", "copying"])
def moving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether frames change hands; otherwise the host is one that cannot do it."""
    if request.param == "copying":
        monkeypatch.setattr(shmem, "can_move", lambda *_: False)
        return False
    need_moves()
    return True


@pytest.fixture
def arena() -> Iterator[Arena]:
    """Memory full of noise."""
    memory = Arena("memory", FRAMES * FRAME_PAGES)
    fill(memory)
    yield memory
    memory.close()


def fill(memory: Arena, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    memory.mem.view(np.uint64)[:] = rng.integers(0, 1 << 63, (memory.num_pages, PAGE_SIZE // 8), dtype=np.uint64)


class Store:
    """A store, what its handles stand for, and what a user that gives and takes does."""

    def __init__(self, size: int = SIZE) -> None:
        self.store = ShmemStore(size)
        self.model: dict[int, np.ndarray] = {}

    def give(self, memory: Arena, pages: Pages, unchanged: np.ndarray | None = None) -> Pages:
        """Handles; the pages that are stored are scribbled over, as whoever gets them next does."""
        rows = memory.mem[pages].copy()
        transfer = self.store.begin_store(len(pages), gives=True)
        self.store.write(transfer, memory, pages)
        handles = self.store.end_store(transfer, None if unchanged is None else unchanged.copy())
        for handle, row in zip(handles.tolist(), rows, strict=False):
            if handle:
                assert handle not in self.model
                self.model[handle] = row
        memory.mem[pages[: len(handles)][handles != 0]] = 0xAA
        return handles

    def take(self, memory: Arena, handles: Pages, pages: Pages) -> int:
        """How many came back, all of them right. They are dropped."""
        error: LoadError | None = None
        transfer = self.store.begin_load(handles, takes=True)
        self.store.read(transfer, memory, pages)
        try:
            loaded = self.store.end_load(transfer)
        except LoadError as failure:
            loaded, error = failure.loaded, failure
        self.store.drop(handles[:loaded])
        for handle, page in zip(handles[:loaded].tolist(), pages.tolist(), strict=False):
            assert (memory.mem[page] == self.model.pop(handle)).all(), f"handle {handle} on page {page}"
        if error is not None:
            raise error
        return loaded

    def look(self, memory: Arena, handles: Pages) -> None:
        """They can be loaded, all of them right, and stay."""
        self.store.load(handles, memory, np.arange(len(handles), dtype=np.uint32))
        for page, handle in enumerate(handles.tolist()):
            assert (memory.mem[page] == self.model[handle]).all(), f"handle {handle}"

    def check(self) -> None:
        """Its books are right, and the host holds memory for no 2 MiB in which these say that there is none."""
        store = self.store
        store.check()
        assert store.slots.stored == store.slots.used == len(self.model)
        touched = set((np.flatnonzero(store.slots._state & TOUCHED) // FRAME_PAGES).tolist())
        for slab in set(range(store.slots.num_slots // FRAME_PAGES)) - touched:
            assert resident_pages(store._arena, slab * FRAME_PAGES, FRAME_PAGES) == 0, f"slab {slab}"

    def end(self) -> None:
        """Nothing is stored; nothing is left."""
        if self.model:
            self.store.drop(np.array(list(self.model), np.uint32))
            self.model.clear()
        self.store.writeback()
        assert resident_pages(self.store._arena) == 0
        assert (self.store.used, self.store.waste, self.store.slots.used) == (0, 0, 0)
        self.store.check()
        self.store.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.check()
    made.end()


def scratch(pages: int = FRAMES * FRAME_PAGES) -> Arena:
    return Arena("scratch", pages)


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


# -- failures on the way out -------------------------------------------------------------------------------------------

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
    before, real, calls = arena.mem.copy(), shmem.page_sums, []

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
    bits = 1 + sum(1 for _ in store.store.write_steps(store.store.begin_store(len(given)), arena, given))
    store.store.slots.put(loose(0, len(given)))
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


# -- failures on the way back ------------------------------------------------------------------------------------------


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
