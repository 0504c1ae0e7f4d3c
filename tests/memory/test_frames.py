"""Frames that change hands: their bytes arrive, nothing stays behind, and where the host refuses they are copied."""

import ctypes
import errno
import os
import random
import weakref

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tests.memory.frame_noise import ADVISED, FRAMES, frame, noise, resident
from tests.memory.host_memory import mappings, resident_pages, unmap, vm_flags
from ttmfs.errors import TtmError
from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES, HUGE_SIZE, Arena
from ttmfs.memory.frames import can_exchange, can_move, frames_in, move_frame


def host_moves() -> bool:
    first, second = Arena("first", FRAME_PAGES), Arena("second", FRAME_PAGES)
    try:
        return can_move(first, second)
    finally:
        first.close()
        second.close()


pytestmark = pytest.mark.skipif(not host_moves(), reason="this host does not move frames (Linux before 5.7)")


# -- where frames are --------------------------------------------------------------------------------------------------


def frames_by_hand(first: list[int], second: list[int]) -> list[int]:
    """`frames_in`, as one would say it."""

    def is_frame(pages: list[int]) -> bool:
        return pages[0] % FRAME_PAGES == 0 and pages == list(range(pages[0], pages[0] + FRAME_PAGES))

    return [
        at
        for at in range(len(first) - FRAME_PAGES + 1)
        if is_frame(first[at : at + FRAME_PAGES]) and is_frame(second[at : at + FRAME_PAGES])
    ]


LENGTH = st.one_of(st.sampled_from([1, 511, 512, 513, 1024, 1100]), st.integers(1, 1100))
START = st.one_of(st.sampled_from([0, 0, 0, 1, 511]), st.integers(0, 511))
RUN = st.tuples(st.integers(0, 5), START)
"""A run of pages begins in some frame, mostly at its begin."""


@st.composite
def two_arrays(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Runs that begin together in both, or in one of them only, now and then backwards or with two pages swapped."""
    arrays: tuple[list[int], list[int]] = ([], [])
    runs = [0, 0]
    for length in draw(st.lists(LENGTH, max_size=4)):
        for side, pages in enumerate(arrays):
            if draw(st.booleans()) or not pages:
                number, offset = draw(RUN)
                runs[side] = number * FRAME_PAGES + offset
            pages.extend(range(runs[side], runs[side] + length))
            runs[side] += length
    for pages in arrays:
        if len(pages) > 1 and draw(st.booleans()):
            at = draw(st.integers(0, len(pages) - 2))
            pages[at], pages[at + 1] = pages[at + 1], pages[at]
    return arrays


@settings(deadline=None, max_examples=150)
@given(two_arrays(), st.sampled_from([np.uint32, np.int64]), st.sampled_from([np.uint32, np.int64]))
def test_frames_in_finds_each_whole_frame_and_nothing_else(
    arrays: tuple[list[int], list[int]], one: type[np.generic], other: type[np.generic]
) -> None:
    first, second = arrays
    found = frames_in(np.array(first, one), np.array(second, other))
    assert found.dtype == np.int64
    assert found.tolist() == frames_by_hand(first, second)


def test_frames_in_at_the_edges() -> None:
    def found(first: list[int], second: list[int]) -> list[int]:
        result: list[int] = frames_in(np.array(first), np.array(second)).tolist()
        assert result == frames_by_hand(first, second)
        return result

    whole = list(range(FRAME_PAGES))
    assert found([], []) == []
    assert found(whole[:-1], whole[:-1]) == []
    assert found(whole, [page + 1024 for page in whole]) == [0]
    assert found(whole, [page + 1 for page in whole]) == []
    assert found(whole, whole[::-1]) == []
    assert found([9, *whole, *whole], [7, *whole, *(page + 512 for page in whole)]) == [1, 513]


# -- one frame ---------------------------------------------------------------------------------------------------------


def test_the_bytes_arrive_and_nothing_stays_behind(arenas: tuple[Arena, Arena]) -> None:
    dst, src = arenas
    for number in range(FRAMES):
        frame(src, number)[:] = noise(number)
    frame(dst, 2)[:] = 0xEE
    move_frame(dst, 2 * FRAME_PAGES, src, FRAME_PAGES)
    assert (resident(src, 1), resident(dst, 2)) == (0, FRAME_PAGES)
    assert (resident_pages(src), resident_pages(dst)) == (3 * FRAME_PAGES, FRAME_PAGES)
    assert (frame(dst, 2) == noise(1)).all()
    assert not frame(src, 1).any()
    for number in (0, 2, 3):
        assert (frame(src, number) == noise(number)).all()
    for number in (0, 1, 3):
        assert not frame(dst, number).any()
    # Both ends are memory like any other.
    frame(src, 1)[:] = noise(9)
    frame(dst, 2)[0, 0] ^= 0xFF
    assert (frame(src, 1) == noise(9)).all()
    assert (frame(dst, 2)[1:] == noise(1)[1:]).all()
    dst.give_back(2 * FRAME_PAGES, FRAME_PAGES)
    assert resident(dst, 2) == 0
    assert not frame(dst, 2).any()


def test_a_frame_of_which_the_host_holds_only_a_part(arenas: tuple[Arena, Arena]) -> None:
    dst, src = arenas
    frame(dst, 0)[:] = 0xEE
    frame(src, 0)[:] = noise(1)
    src.give_back(100, 300)
    move_frame(dst, 0, src, 0)
    expected = noise(1)
    expected[100:400] = 0
    assert resident(src, 0) == 0
    assert (frame(dst, 0) == expected).all()
    # And one of which it holds nothing: what was there is gone.
    move_frame(dst, 0, src, FRAME_PAGES)
    assert not frame(dst, 0).any()


def test_both_ends_keep_their_advice(arenas: tuple[Arena, Arena]) -> None:
    dst, src = arenas
    ends = (dst.address + HUGE_SIZE, src.address)
    before = [vm_flags(end) & ADVISED for end in ends]
    frame(src, 0)[:] = 1
    move_frame(dst, FRAME_PAGES, src, 0)
    assert [vm_flags(end) & ADVISED for end in ends] == before
    assert all("dc" in vm_flags(end) for end in ends)


def test_what_is_no_frame_of_an_arena_is_refused(arenas: tuple[Arena, Arena]) -> None:
    """Else a page table entry of somebody else would change hands."""
    dst, src = arenas
    frame(src, 0)[:] = noise(0)
    frame(dst, 3)[:] = noise(3)
    closed = Arena("closed", FRAME_PAGES)
    closed.close()
    for to, to_page, of, of_page in (
        (dst, FRAMES * FRAME_PAGES, src, 0),
        (dst, -FRAME_PAGES, src, 0),
        (dst, 3 * FRAME_PAGES, src, FRAMES * FRAME_PAGES),
        (closed, 0, src, 0),
        (dst, 3 * FRAME_PAGES, closed, 0),
    ):
        with pytest.raises(TtmError) as caught:
            move_frame(to, to_page, of, of_page)
        assert caught.value.errno == errno.EINVAL
    assert (frame(src, 0) == noise(0)).all()
    assert (frame(dst, 3) == noise(3)).all()


# -- many frames -------------------------------------------------------------------------------------------------------


def test_to_and_fro_for_long() -> None:
    """Content by content; every frame may become a mapping of its own, and no more; all goes back at the end."""
    number = 12
    before = mappings()
    pair = [Arena("first", number * FRAME_PAGES), Arena("second", number * FRAME_PAGES)]
    rng = random.Random(1)
    where: dict[tuple[int, int], int] = {}
    for seed in range(number):
        frame(pair[seed % 2], seed)[:] = noise(seed)
        where[seed % 2, seed] = seed
    most = 0
    for turn in range(600):
        side, at = rng.choice(sorted(where))
        free = [to for to in range(number) if (1 - side, to) not in where]
        to = rng.choice(free)
        move_frame(pair[1 - side], to * FRAME_PAGES, pair[side], at * FRAME_PAGES)
        where[1 - side, to] = where.pop((side, at))
        if turn % 50 == 0:
            most = max(most, mappings())
            for (of, place), seed in where.items():
                assert (frame(pair[of], place) == noise(seed)).all(), f"frame {seed} after {turn} turns"
            for of in (0, 1):
                assert resident_pages(pair[of]) == FRAME_PAGES * sum(side == of for side, _ in where)
    assert most <= before + 2 * number + 8
    for arena in pair:
        arena.close()
    assert mappings() <= before + 8


# -- a host that refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [True, False])
def test_a_frame_that_the_host_does_not_move_is_copied(
    arenas: tuple[Arena, Arena], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hole: bool
) -> None:
    """Also where mremap has unmapped its target before it found out that it cannot."""
    dst, src = arenas

    def refuse(_source: int, _size: int, _new_size: int, _flags: int, target: int) -> int | None:
        if hole:
            unmap(target, HUGE_SIZE)
        ctypes.set_errno(errno.ENOMEM)
        return frames._FAILED

    for number in range(FRAMES):
        frame(src, number)[:] = noise(number)
        frame(dst, number)[:] = noise(10 + number)
    advice = vm_flags(dst.address + HUGE_SIZE) & ADVISED
    frames._warn_once.cache_clear()
    monkeypatch.setattr(frames, "_mremap", refuse)
    move_frame(src, 3 * FRAME_PAGES, dst, 3 * FRAME_PAGES)
    move_frame(dst, 3 * FRAME_PAGES, src, 3 * FRAME_PAGES)
    frame(src, 3)[:] = noise(3)
    move_frame(dst, FRAME_PAGES, src, 2 * FRAME_PAGES)
    monkeypatch.undo()
    assert caplog.text.count(os.strerror(errno.ENOMEM)) == 1, "once is enough"
    assert resident(src, 2) == 0
    assert not frame(src, 2).any()
    assert vm_flags(dst.address + HUGE_SIZE) & ADVISED == advice
    for number in range(FRAMES):
        assert (frame(dst, number) == noise(2 if number == 1 else 10 + number)).all()
        assert number == 2 or (frame(src, number) == noise(number)).all()
    # It is like any other frame of its arena then.
    move_frame(src, 2 * FRAME_PAGES, dst, FRAME_PAGES)
    assert (frame(src, 2) == noise(2)).all()
    assert resident(dst, 1) == 0


def test_no_mapping_at_all_to_be_had_is_an_error_and_the_source_keeps_its_bytes(
    arenas: tuple[Arena, Arena], monkeypatch: pytest.MonkeyPatch
) -> None:
    dst, src = arenas

    def refuse(*_: object) -> int | None:
        ctypes.set_errno(errno.ENOMEM)
        return frames._FAILED

    frame(src, 0)[:] = noise(0)
    monkeypatch.setattr(frames, "_mremap", refuse)
    monkeypatch.setattr(frames, "_mmap", refuse)
    with pytest.raises(OSError, match="no mapping left") as caught:
        move_frame(dst, 0, src, 0)
    assert caught.value.errno == errno.ENOMEM
    assert (frame(src, 0) == noise(0)).all()


def test_too_many_frames_are_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "_taking_part", weakref.WeakSet())
    pair = Arena("first", FRAME_PAGES), Arena("second", 2 * FRAME_PAGES)
    for most, answer in ((2, False), (3, True), (4, True)):
        monkeypatch.setattr(frames, "_most_frames", lambda most=most: most)
        assert can_move(*pair) is answer
        assert can_move(*pair[::-1]) is answer
    # Those of all pairs together: each may become a mapping.
    third = Arena("third", FRAME_PAGES)
    assert can_move(pair[0], third)
    assert not can_move(third, Arena("fourth", FRAME_PAGES))
    third.close()
    monkeypatch.setattr(frames, "_host_moves", lambda: False)
    assert not can_move(*pair)
    assert not can_exchange(*pair)
    for arena in pair:
        arena.close()


def test_the_limit_leaves_room_for_others() -> None:
    with open("/proc/sys/vm/max_map_count", encoding="ascii") as file:
        allowed = int(file.read())
    assert 0 < frames._most_frames() <= allowed // 2
