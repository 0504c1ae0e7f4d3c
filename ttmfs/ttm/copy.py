"""Copy: bytes of a BO on their way from one backing to another behind a fence.

A move swaps the resource at once and leaves a Copy; until its fence signals, the source is intact and owned (by the
BO, a ghost, or whoever inherited the fence) and requests that may not wait are served from it (rules R3 and R4).
Whole frames of 2 MiB may be left out while bytes move: they change places at the end, some in each step (R11).
"""

import enum
from collections.abc import Iterable
from typing import Final

from ttmfs.memory.arena import FRAME_PAGES
from ttmfs.memory.copy import copy_pages, copy_run, zero_pages
from ttmfs.memory.frames import can_exchange
from ttmfs.sync.fence import Fence
from ttmfs.ttm.backing import Backing
from ttmfs.ttm.copy_frames import LOOK_PAGES, FrameRun, frame_runs
from ttmfs.ttm.gate import ALL_PAGES
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

_RUN_AHEAD: Final = 4096
"""Pages ahead for which a copy looks whether they go on as a run."""
_STEP_FRAMES: Final = 20
"""How many frames change hands in one step: a tenth of a millisecond or two."""
_RUN_COSTS: Final = 3
"""A run of frames costs as much as so many frames more."""
_MOST_RUNS: Final = 32
"""Runs of frames of a source with holes, which change hands in one step: a millisecond or so."""


class CopyState(enum.Enum):
    """QUEUED until its dependencies signaled and its simulated latency is spent; RUNNING while bytes move."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Copy:
    """`num_pages` pages from `src` (None: zeros) to `dst`, announced by `fence`.

    When the copy runs `dst` has memory for all of these pages that are no holes of `src`; holes are passed over.
    `zero_from` is a byte offset or None: what `dst` has from there on was cut off by a truncate while the copy ran and
    reads as zeros.
    """

    __slots__ = (
        "_in_steps",
        "_run",
        "covers",
        "dst",
        "fence",
        "first",
        "frames",
        "num_pages",
        "src",
        "state",
        "zero_from",
    )

    def __init__(self, src: Backing | None, dst: Backing, num_pages: int, fence: Fence) -> None:
        self.src = src
        self.dst = dst
        self.num_pages = num_pages
        self.first = 0
        """Where `src` begins to be where requests find pages: behind what a region holds, of a tail that is stored, and
        behind what has arrived, once frames change hands."""
        self.covers = num_pages
        """Pages up to which `src` is where requests find them; fewer when a later copy takes fewer on."""
        self.fence = fence
        self.state = CopyState.QUEUED
        self.zero_from: int | None = None
        self.frames: tuple[FrameRun, ...] = ()
        """Frames that are not copied but change hands at the end, in order; those that have not yet."""
        self._in_steps = False
        """The frames may change hands some at a time."""
        self._run = (0, 0, 0, 0)
        """First and end index of a stretch that is one run at both ends, and its first page at the source and target.

        True until the copy is done: nothing may give either end other pages while bytes move.
        """

    @property
    def pages_to_move(self) -> int:
        """How many pages have bytes; about, when the source changes."""
        src = self.src
        return min(src.populated_pages, self.num_pages) if isinstance(src, TT) else self.num_pages

    def look_for_frames(self, index: int) -> int:
        """Find frames that can change hands among some pages from `index` on, now that bytes move: neither end gets
        other pages until that is over. Where to look next; `num_pages` when all was looked at."""
        src = self.src
        if isinstance(src, TT):
            # Holes cost nothing, however many there are.
            index = max(index, src.next_content(index))
        if src is None or self.num_pages - index < FRAME_PAGES or not _may_change_hands(src, self.dst):
            return self.num_pages
        end = min(index + LOOK_PAGES, self.num_pages)
        self.frames += tuple(found := frame_runs(src, self.dst, index, end - index))
        if end == self.num_pages:
            return end
        # A frame may begin before that and end behind it.
        return max(end - FRAME_PAGES + 1, found[-1].end if found else 0)

    def choose_frames(self) -> None:
        """When all were found. Of a source with holes no more runs than one step has time for, the longest ones: a
        page that has arrived must have memory, so there all arrive in that one step. What is left out is copied."""
        self._in_steps = not isinstance(self.src, TT) or self.src.is_populated
        if not self._in_steps:
            longest = sorted(self.frames, key=lambda run: -run.frames)[:_MOST_RUNS]
            self.frames = tuple(sorted(longest))

    def change_hands(self) -> int:
        """One step at the end of the move, when all else is copied: some frames change hands, in order. How many pages
        that were; 0 when all have.

        The pages before them have arrived then: requests find them at the target, in this very step.
        """
        runs = self._runs_of_a_step() if self._in_steps else len(self.frames)
        done, self.frames = self.frames[:runs], self.frames[runs:]
        for run in done:
            run.change_hands()
        if done:
            self._arrived(done[-1].end)
        return sum(run.end - run.first for run in done)

    def _runs_of_a_step(self) -> int:
        cost = 0
        for number, run in enumerate(self.frames):
            cost += run.frames + _RUN_COSTS
            if cost > _STEP_FRAMES:
                return max(number, 1)
        return len(self.frames)

    def _arrived(self, end: int) -> None:
        """Pages before `end` are what the target has from now on, cut where a truncate cut them."""
        self._cut(end)
        self.first = end

    def _cut(self, end: int) -> None:
        """Cut off what a truncate took away meanwhile; what has arrived before was cut then, or there."""
        if self.zero_from is not None:
            zero_bytes(self.dst, max(self.zero_from, self.first << PAGE_SHIFT), end)

    def next_to_move(self, index: int) -> int:
        """The first page from `index` on that may have bytes to be copied; `num_pages` when none has."""
        for run in self.frames:
            if run.first <= index < run.end:
                index = run.end
        src = self.src
        if not isinstance(src, TT) or src.is_populated:
            return index
        after = min(src.next_content(index), self.num_pages)
        # Holes cost nothing; behind them a run of frames may begin.
        return index if after == index else self.next_to_move(after)

    def room(self, index: int) -> int:
        """How many pages can be copied from `index` on before frames come that change hands, or the end."""
        return min((run.first for run in self.frames if run.first > index), default=self.num_pages) - index

    def step(self, index: int, count: int) -> None:
        """Copy (or clear) `count` pages from page `index` on; synchronous."""
        src = self.src
        if src is not None and self._step_of_runs(index, count):
            return
        if isinstance(src, TT) and not src.has_memory(index, count):
            self._step_over_holes(src, index, count)
            return
        dst_pages = self.dst.numbers(index, count)
        if src is None:
            zero_pages(self.dst.arena, dst_pages)
        else:
            copy_pages(self.dst.arena, dst_pages, src.arena, src.numbers(index, count))

    def _step_over_holes(self, src: TT, index: int, count: int) -> None:
        """The step of a sparse source (defrag): what is a hole there is one, or zeros, in the target."""
        at, src_pages = src.pages_in(index, count)
        if len(at):
            copy_pages(self.dst.arena, self.dst.numbers(index, count)[at - index], src.arena, src_pages)

    def _step_of_runs(self, index: int, count: int) -> bool:
        """The step when both ends are one run, which is what most of them are: no page arrays are looked at."""
        assert self.src is not None
        first, end, src, dst = self._run
        if not first <= index <= index + count <= end:
            ahead = min(max(count, _RUN_AHEAD), self.num_pages - index)
            src, src_length = self.src.extent(index, ahead)
            if src < 0 or src_length < count:
                return False
            dst, dst_length = self.dst.extent(index, ahead)
            if dst < 0 or dst_length < count:
                return False
            first = index
            self._run = (index, index + min(src_length, dst_length), src, dst)
        copy_run(self.dst.arena, dst + index - first, self.src.arena, src + index - first, count)
        return True

    def finish(self) -> None:
        """All has arrived."""
        self._cut(self.num_pages)
        self.state = CopyState.DONE


def truth_ends(copies: Iterable[Copy], index: int) -> int:
    """The page behind `index` from which on another copy's source, or none, may be where requests find pages."""
    edges = (edge for copy in copies for edge in (copy.first, copy.covers) if edge > index)
    return min(edges, default=ALL_PAGES.stop)


def _may_change_hands(src: Backing, dst: Backing) -> bool:
    """Not memory of an imported file: what its pages are called is no memory of ours."""
    ours = not any(isinstance(end, TT) and end.external for end in (src, dst))
    return ours and can_exchange(src.arena, dst.arena)


def zero_bytes(backing: Backing, offset: int, end_page: int) -> None:
    """Zero the memory of `backing` from byte `offset` to the end of page `end_page` - 1; holes are zeros already."""
    index = offset >> PAGE_SHIFT
    if offset & PAGE_MASK and index < end_page:
        page, _length = backing.extent(index, 1)
        if page >= 0:
            backing.arena.mem[page, offset & PAGE_MASK :] = 0
        index += 1
    if index < end_page:
        count = end_page - index
        pages = backing.pages_in(index, count)[1] if isinstance(backing, TT) else backing.numbers(index, count)
        zero_pages(backing.arena, pages)
