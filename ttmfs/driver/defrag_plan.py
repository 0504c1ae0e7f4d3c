"""The defrag plan: an order of BOs in which re-backing them frees high-order blocks, tried out on a copy of the books.

A BO that moves takes whole blocks of the beneficial order and leaves its fragments; a frame (an aligned stretch of that
order) is free again when its last page went. So the next BO is the one that frees most frames, less those it takes, per
page moved. Every step is made on a buddy allocator with the same free blocks, which answers as the real one will; the
plan ends where no order can be had less often than before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.driver.defrag import Result, Tally, idle, listed_pass, named_pass, try_one
from ttmfs.memory.buddy import Buddy
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.defrag import improvable, whole_pieces
from ttmfs.ttm.tt import decode_pages
from ttmfs.units import MAX_ORDER

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice
    from ttmfs.memory.pool import PagePool

Counts = NDArray[np.int64]


def obtainable(free_by_order: Sequence[int]) -> Counts:
    """Per order 0..10, how many blocks of it could be had: larger ones count as what they split into. int64 (11,)."""
    free = np.asarray(free_by_order[: MAX_ORDER + 1], np.int64).copy()
    for order in range(MAX_ORDER, 0, -1):
        free[order - 1] += 2 * free[order]
    return free


class _Books:
    """A buddy allocator with the same free blocks as the pool's."""

    def __init__(self, pool: "PagePool") -> None:
        self.order = pool.beneficial_order
        self.reserve = pool.reserve_pages
        self.buddy = Buddy(pool.num_pages)
        free = np.flatnonzero(pool.free_map())
        self.buddy.alloc(pool.num_pages)
        self._free(free)

    def _free(self, pages: NDArray[Any]) -> None:
        if len(pages):
            self.buddy.split(pages)
            self.buddy.free(self.buddy.blocks_of(np.sort(pages)))

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

    def move(self, old: NDArray[Any], pieces: int) -> NDArray[np.int64]:
        """Take memory as a defrag does, then free `old`; the pages taken."""
        whole = self._take(pieces << self.order, MAX_ORDER)
        rest = self._take(len(old) - whole.size, self.order - 1)
        self._free(old)
        return np.concatenate((whole, rest))

    def _take(self, pages: int, order: int) -> NDArray[np.int64]:
        taken: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        while pages and order >= 0:
            order = min(order, pages.bit_length() - 1)
            starts = self.buddy.alloc_order(order, pages >> order)
            taken.append((starts[:, None] + np.arange(1 << order)).ravel())
            pages -= starts.size << order
            order -= 1
        return np.concatenate(taken)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A BO that could be re-backed: its pages, its whole pieces, the frames its pages lie in and how many in each."""

    bo: BufferObject
    pages: NDArray[np.uint32]
    pieces: int
    frames: NDArray[np.int64]
    counts: NDArray[np.int64]


def _candidate(bo: BufferObject) -> _Candidate:
    tt = bo.tt
    assert tt is not None
    pages = decode_pages(tt.vector[tt.present()])
    frames, counts = np.unique(pages.astype(np.int64) >> tt.pool.beneficial_order, return_counts=True)
    return _Candidate(bo, pages, len(whole_pieces(tt)), frames, counts)


async def make_plan(pool: "PagePool", bos: Sequence[BufferObject], limit: int, floor: Counts) -> list[BufferObject]:
    """The BOs to defrag, in order, at most `limit`; afterwards every order is had at least `floor` times."""
    left = [_candidate(bo) for bo in bos]
    books = _Books(pool)
    size = 1 << pool.beneficial_order
    used = np.zeros(-(-pool.num_pages // size), np.int64)
    np.add.at(used, np.flatnonzero(pool.free_map() == 0) >> pool.beneficial_order, 1)
    order: list[BufferObject] = []
    good = 0
    while left and len(order) < limit:
        blocks = books.blocks()
        scores = [_score(candidate, used) for candidate in left if candidate.pieces <= blocks]
        able = [candidate for candidate in left if candidate.pieces <= blocks]
        if not able:
            break
        best = able[max(range(len(able)), key=scores.__getitem__)]
        left.remove(best)
        taken = books.move(best.pages, best.pieces)
        used[best.frames] -= best.counts
        np.add.at(used, taken >> pool.beneficial_order, 1)
        order.append(best.bo)
        if bool((books.obtainable() >= floor).all()):
            good = len(order)
        await trio.lowlevel.checkpoint()
    return order[:good]


def _score(candidate: _Candidate, used: NDArray[np.int64]) -> tuple[float, float]:
    """Frames gained per page moved; then how near its other frames come to being free."""
    in_use = used[candidate.frames]
    gain = int((in_use == candidate.counts).sum()) - candidate.pieces
    near = float((candidate.counts / in_use).sum()) - candidate.pieces
    return gain / len(candidate.pages), near / len(candidate.pages)


async def planned_pass(vdev: "VirtualDevice", bos: Sequence[BufferObject], limit: int) -> tuple[Tally, Counts, Counts]:
    """`ctl/defrag all`: plan and move; what was done, and what could be had of each order before and after.

    The pool is emptied first: what it keeps is free memory that cannot merge. A BO that fails is left out, and the rest
    planned anew.
    """
    pool = vdev.pool
    tally = Tally()
    vdev.ttm.defrag_list.runs += 1
    pool.shrink(pool.pooled_pages)
    before = obtainable(pool.free_by_order())
    passed_over: set[BufferObject] = set()
    while tally.moved < limit and not idle(vdev):
        able = [bo for bo in bos if bo not in passed_over and not bo.pin_count and improvable(bo)]
        plan = await make_plan(pool, able, limit - tally.moved, before)
        for bo in plan:
            if not await try_one(vdev, bo, tally, wait=True):
                passed_over.add(bo)
                break
            passed_over.add(bo)
        else:
            break
    return tally, before, obtainable(pool.free_by_order())


async def defrag_pass(
    vdev: "VirtualDevice", bos: Sequence[BufferObject] | None, *, planned: bool, limit: int | None
) -> Result:
    """ctl/defrag: one pass over the list (`bos` None), over these BOs in this order, or over them as planned.

    `obtainable` in the result is how many blocks of each order 0..10 can be had afterwards, `gained` what that is more
    than before.
    """
    pool = vdev.pool
    before = obtainable(pool.free_by_order())
    if bos is None:
        tally = await listed_pass(vdev, vdev.defrag.limit if limit is None else limit)
    else:
        most = len(bos) if limit is None else limit
        if planned:
            tally, before, _after = await planned_pass(vdev, bos, most)
        else:
            tally = await named_pass(vdev, bos, most)
    after = obtainable(pool.free_by_order())
    return {**tally.as_result(), "obtainable": after.tolist(), "gained": (after - before).tolist()}
