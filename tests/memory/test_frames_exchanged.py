"""Frames that change places: both ends have the bytes of the other then, also where the host refuses half way."""

import ctypes
import errno
import os
import random
from collections.abc import Callable

import numpy as np
import pytest

from tests.memory.frame_noise import ADVISED, FRAMES, frame, noise
from tests.memory.host_memory import mappings, resident_pages, unmap, vm_flags
from tests.memory.moved import host_moves
from ttmfs.errors import TtmError
from ttmfs.memory import frames
from ttmfs.memory.arena import FRAME_PAGES, HUGE_SIZE, Arena
from ttmfs.memory.frames import can_exchange, can_move, exchange, longest_run

pytestmark = pytest.mark.skipif(not host_moves(), reason="this host does not move frames (Linux before 5.7)")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> type[frames._Host]:
    """What an exchange that is refused leaves behind goes with the test."""
    monkeypatch.setattr(frames._Host, "refused", False)
    return frames._Host


def full(*pair: Arena) -> None:
    """Of noise, each frame of another."""
    for side, arena in enumerate(pair):
        for number in range(arena.num_pages // FRAME_PAGES):
            frame(arena, number)[:] = noise(100 * side + number)


def test_both_ends_have_the_bytes_of_the_other_then(arenas: tuple[Arena, Arena], host: object) -> None:
    one, other = arenas
    full(one, other)
    advice = [vm_flags(arena.address) & ADVISED for arena in arenas]
    exchange(one, FRAME_PAGES, other, 2 * FRAME_PAGES, 1)
    exchange(one, 2 * FRAME_PAGES, one, 3 * FRAME_PAGES, 1)
    for arena, contents in ((one, (0, 102, 3, 2)), (other, (100, 101, 1, 103))):
        for number, seed in enumerate(contents):
            assert (frame(arena, number) == noise(seed)).all(), f"frame {number} of {arena.name}"
    assert [vm_flags(arena.address + at * HUGE_SIZE) & ADVISED for at in range(FRAMES) for arena in arenas] == (
        FRAMES * advice
    )
    assert resident_pages(one) == resident_pages(other) == FRAMES * FRAME_PAGES
    assert resident_pages(frames._spare()) == 0
    # Once more, and they are where they were.
    exchange(other, 2 * FRAME_PAGES, one, FRAME_PAGES, 1)
    assert (frame(one, 1) == noise(1)).all()
    assert (frame(other, 2) == noise(102)).all()


def test_a_host_without_memory_for_the_spare_frames_is_found_out_before_anything_depends_on_it(
    arenas: tuple[Arena, Arena], host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `ulimit -v`: an exchange that fails at the end of a move would end the engine, and the mount."""

    def refused(name: str, num_pages: int) -> Arena:
        raise TtmError(errno.ENOMEM, f"the host does not give {num_pages} pages for {name!r}")

    assert can_move(*arenas)
    frames._spare.cache_clear()
    with monkeypatch.context() as short:
        short.setattr(frames, "Arena", refused)
        assert not can_exchange(*arenas)
    assert can_exchange(*arenas)


def test_a_target_never_touched_leaves_an_empty_source(arenas: tuple[Arena, Arena], host: object) -> None:
    one, other = arenas
    frame(one, 0)[:] = noise(1)
    exchange(one, 0, other, FRAME_PAGES, 1)
    assert (resident_pages(one), resident_pages(other)) == (0, FRAME_PAGES)
    assert (frame(other, 1) == noise(1)).all()
    assert not one.mem.any()


def test_runs_of_frames_whatever_mappings_they_lie_in(host: object) -> None:
    number, run = 24, longest_run()
    before = mappings()
    pair = Arena("first", number * FRAME_PAGES), Arena("second", number * FRAME_PAGES)
    model = [[100 * side + at for at in range(number)] for side in (0, 1)]
    for side, arena in enumerate(pair):
        for at in range(number):
            # Eight bytes a page say whose it is.
            frame(arena, at)[:, :8].view(np.uint64)[:, 0] = model[side][at] * 1000 + np.arange(FRAME_PAGES)
    rng = random.Random(3)
    for _ in range(300):
        a, b, count = rng.randrange(2), rng.randrange(2), rng.randint(1, run)
        at, to = rng.randint(0, number - count), rng.randint(0, number - count)
        if a == b and abs(at - to) < count:
            continue
        exchange(pair[a], at * FRAME_PAGES, pair[b], to * FRAME_PAGES, count)
        kept = model[a][at : at + count]
        model[a][at : at + count] = model[b][to : to + count]
        model[b][to : to + count] = kept
    for side, arena in enumerate(pair):
        for at in range(number):
            got = frame(arena, at)[:, :8].copy().view(np.uint64)[:, 0] - np.uint64(model[side][at] * 1000)
            assert (got == np.arange(FRAME_PAGES)).all(), f"frame {at} of {arena.name}"
    # Each frame may have become one, those of the spare ones too.
    assert mappings() <= before + 2 * number + run + 8
    assert not frames._Host.refused
    for arena in pair:
        arena.close()


def test_what_cannot_change_places_is_refused_and_nothing_has(arenas: tuple[Arena, Arena], host: object) -> None:
    one, other = arenas
    full(one, other)
    for args in (
        (one, 0, one, 0, 1),
        (one, 0, other, 1, 1),
        (one, 0, other, 0, 0),
        (one, 0, other, 0, longest_run() + 1),
        (one, 3 * FRAME_PAGES, other, 4 * FRAME_PAGES, 1),
        (one, -FRAME_PAGES, other, 0, 1),
    ):
        with pytest.raises(TtmError) as caught:
            exchange(*args)
        assert caught.value.errno == errno.EINVAL
    for side, arena in enumerate(arenas):
        for number in range(FRAMES):
            assert (frame(arena, number) == noise(100 * side + number)).all()


def refusing(call: int, done: int, *, hole: bool) -> Callable[[int, int, int, int, int], int | None]:
    """mremap that refuses its `call`th call, after it has moved `done` frames of it and unmapped the next one."""
    calls = iter(range(1, 100))
    real = frames._mremap

    def mremap(source: int, size: int, new_size: int, flags: int, target: int) -> int | None:
        if next(calls) != call:
            result: int | None = real(source, size, new_size, flags, target)
            return result
        for offset in range(0, done * HUGE_SIZE, HUGE_SIZE):
            assert real(source + offset, HUGE_SIZE, HUGE_SIZE, flags, target + offset) == target + offset
        if hole:
            unmap(target + done * HUGE_SIZE, size - done * HUGE_SIZE)
        ctypes.set_errno(errno.ENOMEM)
        return frames._FAILED

    return mremap


@pytest.mark.parametrize("hole", [False, True], ids=["", "hole"])
@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_what_the_host_does_not_exchange_is_copied_in_the_same_call(
    arenas: tuple[Arena, Arena],
    host: type[frames._Host],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: int,
    done: int,
    hole: bool,
) -> None:
    run = 3 if longest_run() > 1 else 1
    if done >= run:
        pytest.skip("runs are one frame long here")
    one, other = arenas
    full(one, other)
    assert can_exchange(one, other)
    monkeypatch.setattr(frames, "_mremap", refusing(call, done, hole=hole))
    exchange(one, 0, other, FRAME_PAGES, run)
    monkeypatch.undo()
    monkeypatch.setattr(host, "refused", True)
    assert caplog.text.count("all moves are copied") == 1
    for number in range(FRAMES):
        assert (frame(one, number) == noise(101 + number if number < run else number)).all()
        mine = number - 1 if 1 <= number <= run else 100 + number
        assert (frame(other, number) == noise(mine)).all()
    # No hole in any of them, the spare one included, and nothing left there.
    assert resident_pages(one) == resident_pages(other) == FRAMES * FRAME_PAGES
    assert resident_pages(frames._spare()) == 0
    assert not can_exchange(one, other)
    assert can_move(one, other)


def test_a_refusal_is_remembered(arenas: tuple[Arena, Arena], host: type[frames._Host]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "_mremap", refusing(1, 0, hole=False))
        exchange(arenas[0], 0, arenas[1], 0, 1)
    assert host.refused
    assert not can_exchange(*arenas)


def test_a_process_without_a_mapping_for_what_was_unmapped_ends(
    arenas: tuple[Arena, Arena], host: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread's memory may be in the hole by the next moment."""

    class Ended(BaseException):
        """Instead of SIGABRT."""

    def abort() -> None:
        raise Ended

    def refuse(*_: object) -> int | None:
        ctypes.set_errno(errno.ENOMEM)
        return frames._FAILED

    monkeypatch.setattr(frames, "_mremap", refusing(1, 0, hole=False))
    monkeypatch.setattr(frames, "_mmap", refuse)
    monkeypatch.setattr(os, "abort", abort)
    with pytest.raises(Ended):
        exchange(arenas[0], 0, arenas[1], 0, 1)
