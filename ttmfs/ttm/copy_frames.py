"""Frames of a copy: which parts of it need no copying, as whole frames of 2 MiB at both ends can change places.

A look at some pages costs some tens of microseconds, whatever the BO's size; a copy looks through itself step by step.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.frames import exchange, frames_in, longest_run
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.tt import TT

LOOK_PAGES: Final = 1 << 12
"""16 MiB: how many pages are looked at in one step."""


class FrameRun(NamedTuple):
    """`frames` frames that follow each other at both ends of a copy, from its page `first` on: page `src` of `source`
    and page `dst` of `target`. At most `longest_run()` of them."""

    first: int
    frames: int
    source: Arena
    src: int
    target: Arena
    dst: int

    @property
    def end(self) -> int:
        """The first page of the copy behind it."""
        return self.first + self.frames * FRAME_PAGES

    def change_hands(self) -> None:
        """The target has the source's bytes, and the source those that the target had; synchronous."""
        exchange(self.source, self.src, self.target, self.dst, self.frames)


def frame_runs(src: Backing, dst: Backing, index: int, count: int) -> list[FrameRun]:
    """The whole frames among pages [index, index + count) that have memory at both ends, in order."""
    found = []
    for at, one, other, frames in _stretches(src, dst, index, count):
        for first in range(0, frames, longest_run()):
            pages = first * FRAME_PAGES
            run = min(longest_run(), frames - first)
            found.append(FrameRun(at + pages, run, src.arena, one + pages, dst.arena, other + pages))
    return found


def _stretches(src: Backing, dst: Backing, index: int, count: int) -> Iterator[tuple[int, int, int, int]]:
    """(page of the copy, page at the source, at the target, number of frames) of frames that follow each other."""
    # Long runs at both ends, which most large copies are made of, cost nothing by page.
    while count >= FRAME_PAGES:
        one, length = src.extent(index, count)
        if one < 0 or length < FRAME_PAGES:
            break
        other, other_length = dst.extent(index, count)
        length = min(length, other_length)
        if other < 0 or length < FRAME_PAGES:
            break
        skip = -one % FRAME_PAGES
        frames = (length - skip) // FRAME_PAGES
        if (one - other) % FRAME_PAGES == 0 and frames > 0:
            yield index + skip, one + skip, other + skip, frames
        index += length
        count -= length
    if count < FRAME_PAGES:
        return
    pages, other_pages = _numbers(src, index, count), _numbers(dst, index, count)
    at = frames_in(pages, other_pages)
    if not at.size:
        return
    starts = np.stack((at, pages[at], other_pages[at]))
    breaks = np.flatnonzero((np.diff(starts) != FRAME_PAGES).any(axis=0)) + 1
    for part in np.split(starts, breaks, axis=1):
        first, one, other = part[:, 0].tolist()
        yield index + first, one, other, part.shape[1]


def _numbers(backing: Backing, index: int, count: int) -> NDArray[Any]:
    """Page numbers, and -1 for what has no memory: a hole's number would be that of some page."""
    if not isinstance(backing, TT) or backing.is_populated:
        return backing.numbers(index, count)
    numbers = np.full(count, -1, np.int64)
    at, pages = backing.pages_in(index, count)
    numbers[at - index] = pages
    return numbers
