"""The defrag plan: which BOs to re-back, in which order, so that the pass itself frees high-order blocks.

A BO that moves takes whole blocks of the beneficial order and leaves its fragments; a frame (an aligned stretch of that
order) is free again when its last page went. So the next BO is the one that frees most frames, less those it takes, per
page moved. Where that leaves fewer blocks than there were, frames that only a few pages of small BOs keep are emptied,
the emptiest first, by moving these into gaps elsewhere. Every step is tried on a buddy allocator with the same free
blocks, which answers as the real one will; what is returned leaves no order to be had less often than before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.memory.buddy import Buddy
from ttmfs.sync.breather import Breather
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.defrag import improvable, nothing_to_gain, whole_pieces
from ttmfs.units import MAX_ORDER

if TYPE_CHECKING:
    from ttmfs.memory.pool import PagePool

Counts = NDArray[np.int64]


def obtainable(free_by_order: Sequence[int]) -> Counts:
    """Per order 0..10, how many blocks of it could be had: larger ones count as what they split into. int64 (11,)."""
    free = np.asarray(free_by_order[: MAX_ORDER + 1], np.int64).copy()
    for order in range(MAX_ORDER, 0, -1):
        free[order - 1] += 2 * free[order]
    return free


@dataclass(frozen=True, slots=True)
class Step:
    """Re-back `bo`; `compact`: it is a small one that only goes out of the way."""

    bo: BufferObject
    compact: bool = False


class _Candidate:
    """A BO that could be moved: its pages, its whole pieces, the frames its pages lie in and how many in each.

    `small`: it has nothing to gain by it.
    """

    __slots__ = ("bo", "counts", "frames", "pages", "pieces", "small")

    def __init__(self, bo: BufferObject, *, small: bool) -> None:
        tt = bo.tt
        assert tt is not None
        self.bo = bo
        self.small = small
        self.pages: NDArray[Any] = tt.pages_in(0, tt.num_pages)[1].astype(np.int64)
        self.pieces = len(whole_pieces(tt))
        self.frames, self.counts = np.unique(self.pages >> tt.pool.beneficial_order, return_counts=True)


class _Books:
    """A buddy allocator with `free` (per page, bool) free, and the pages in use of every frame."""

    def __init__(self, free: NDArray[Any], order: int, reserve: int) -> None:
        self.order = order
        self.reserve = reserve
        self.buddy = Buddy(len(free))
        self.buddy.alloc(len(free))
        self.used = np.bincount(np.arange(len(free)) >> order)
        self._free(np.flatnonzero(free))

    def copy(self) -> "_Books":
        """To try something out."""
        return _Books(self.buddy.free_map(), self.order, self.reserve)

    def _free(self, pages: NDArray[Any]) -> None:
        if len(pages):
            self.buddy.split(pages)
            self.buddy.free(self.buddy.blocks_of(np.sort(pages)))
            np.subtract.at(self.used, pages >> self.order, 1)

    def blocks(self) -> int:
        """Blocks of the beneficial order that could be had."""
        spare = max(0, self.buddy.free_pages - self.reserve) >> self.order
        return min(spare, int(self.obtainable()[self.order]))

    def obtainable(self) -> Counts:
        """See the function."""
        free = self.buddy.free_by_order()
        for order in range(MAX_ORDER + 1, len(free)):
            free[MAX_ORDER] += free[order] << (order - MAX_ORDER)
        return obtainable([*free, *[0] * MAX_ORDER])

    def move(self, candidate: _Candidate) -> None:
        """Take memory as a defrag does, then free the old pages."""
        self._take(candidate.pieces << self.order, self.order)
        self._take(len(candidate.pages) - (candidate.pieces << self.order), self.order - 1)
        self._free(candidate.pages)

    def _take(self, pages: int, order: int) -> None:
        while pages and order >= 0:
            order = min(order, pages.bit_length() - 1)
            starts = self.buddy.alloc_order(order, pages >> order)
            np.add.at(self.used, starts >> self.order, 1 << order)
            pages -= starts.size << order
            order -= 1

    def score(self, candidate: _Candidate) -> tuple[float, float]:
        """Frames gained per page moved; then how near its other frames come to being free."""
        in_use = self.used[candidate.frames]
        gain = int((in_use == candidate.counts).sum()) - candidate.pieces
        near = float((candidate.counts / in_use).sum()) - candidate.pieces
        return gain / len(candidate.pages), near / len(candidate.pages)


class _Planner:
    """One attempt at a plan: `steps`, of which the first `good` leave no order below `floor`."""

    def __init__(self, books: _Books, small: Sequence[_Candidate], floor: Counts, limit: int) -> None:
        self.books = books
        self.floor = floor
        self.limit = limit
        self.steps: list[Step] = []
        self.good = 0
        self._users: dict[int, list[_Candidate]] = {}
        for candidate in small:
            for frame in candidate.frames.tolist():
                self._users.setdefault(frame, []).append(candidate)

    @property
    def short(self) -> bool:
        """Is some order to be had less often than before?"""
        return bool((self.books.obtainable() < self.floor).any())

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        if not self.short:
            self.good = len(self.steps)

    async def run(self, large: Sequence[_Candidate]) -> None:
        """Move what can be moved, making room and mending what that costs by compaction."""
        left = list(large)
        while len(self.steps) < self.limit:
            blocks = self.books.blocks()
            able = [candidate for candidate in left if candidate.pieces <= blocks]
            if able:
                best = (await _by_score(able, self.books))[0]
                left.remove(best)
                self.books.move(best)
                self._note(Step(best.bo))
                await trio.lowlevel.checkpoint()
            elif not left or not await self._empty_a_frame():
                break
        while self.short and len(self.steps) < self.limit and await self._empty_a_frame():
            pass

    async def _empty_a_frame(self) -> bool:
        """Move the small BOs out of the emptiest frame that only they keep, if that brings a block; did it?"""
        books = self.books
        frames = [f for f, users in self._users.items() if books.used[f] == sum(_pages_in(u, f) for u in users)]
        mate_free = {f: f ^ 1 < len(books.used) and not books.used[f ^ 1] for f in frames}
        pairs_short = bool((books.obtainable() < self.floor)[MAX_ORDER])
        # A frame whose buddy is free makes a block of the next order as well.
        for frame in sorted(frames, key=lambda f: (pairs_short and not mate_free[f], books.used[f])):
            users = self._users.pop(frame)
            if len(self.steps) + len(users) > self.limit:
                continue
            attempt = books.copy()
            for user in users:
                attempt.move(user)
            await trio.lowlevel.checkpoint()
            gained = attempt.obtainable() - books.obtainable()
            if gained[books.order] <= 0 or bool((gained[books.order :] < 0).any()):
                continue
            self.books = attempt
            for user in users:
                # Where it is now nobody knows before it is done: it is not moved twice.
                for other in user.frames.tolist():
                    if other in self._users:
                        self._users[other] = [u for u in self._users[other] if u is not user]
                self._note(Step(user.bo, compact=True))
            return True
        return False


def _pages_in(candidate: _Candidate, frame: int) -> int:
    return int(candidate.counts[candidate.frames == frame].sum())


async def _candidates(bos: Sequence[BufferObject]) -> list[_Candidate]:
    """Those that may be moved: who can be better off, and who has nothing to gain and can go out of the way."""
    breather = Breather()
    found: list[_Candidate] = []
    for bo in bos:
        if not (bo.pin_count or bo.deleted or nothing_to_gain(bo, compact=True)):
            small = nothing_to_gain(bo)
            if small or improvable(bo):
                found.append(_Candidate(bo, small=small))
        await breather.step()
    return found


def _settled(candidates: list[_Candidate], free: NDArray[Any]) -> list[_Candidate]:
    """Without those that have other pages by now than when they were asked: theirs are `free`, or another's, too."""
    if not candidates:
        return candidates
    pages = np.concatenate([candidate.pages for candidate in candidates])
    starts = np.cumsum([0, *(len(candidate.pages) for candidate in candidates[:-1])])
    wrong = free | (np.bincount(pages, minlength=len(free)) > 1)
    stale = np.logical_or.reduceat(wrong[pages], starts)
    return [candidate for candidate, other in zip(candidates, stale.tolist(), strict=True) if not other]


async def _by_score(candidates: Sequence[_Candidate], books: _Books) -> list[_Candidate]:
    """Those that gain most first, and of equals the first one."""
    breather = Breather()
    scores: list[tuple[float, float]] = []
    for candidate in candidates:
        scores.append(books.score(candidate))
        await breather.step()
    order = sorted(range(len(candidates)), key=scores.__getitem__, reverse=True)
    return [candidates[index] for index in order]


async def make_plan(pool: "PagePool", bos: Sequence[BufferObject], limit: int, floor: Counts) -> list[Step]:
    """What to move, in order, at most `limit` steps; afterwards every order can be had at least `floor` times.

    `bos` are those that may be moved at all. Tries to move all that can be better off, then fewer of them.
    """
    asked = await _candidates(bos)
    free = pool.free_map()
    candidates = _settled(asked, free)
    large = [candidate for candidate in candidates if not candidate.small]
    small = [candidate for candidate in candidates if candidate.small]
    if not large:
        return []
    await trio.lowlevel.checkpoint()
    books = _Books(free, pool.beneficial_order, pool.reserve_pages)
    best: list[Step] = []
    most = -1
    wanted = await _by_score(large, books)
    while wanted:
        planner = _Planner(books.copy(), small, floor, limit)
        await planner.run(wanted)
        steps = planner.steps[: planner.good]
        moved = sum(not step.compact for step in steps)
        if moved > most:
            best, most = steps, moved
        if moved >= len(wanted):
            break
        wanted = wanted[: len(wanted) * 3 // 4]
        if len(wanted) <= most:
            break
    return best
