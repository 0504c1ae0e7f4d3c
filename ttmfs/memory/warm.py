"""WarmFrames: which free memory goes back to the host, and when.

Memory that the host has given costs a page fault and its zeroing when it is touched first, several times a copy. So a
2 MiB frame that becomes free as a whole stays as it is ("warm", dirty as far as anybody knows) for a second, because
what moves to and fro takes it again at once; up to `limit_pages` of free touched memory, beyond that frames go back
immediately. Smaller pieces that were touched go back when `drop_idle` comes by, frames when they have idled.
"""

import math
from collections.abc import Callable

import numpy as np

from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.buddy import Buddy
from ttmfs.memory.runs import Int64Array, Uint8Array, ascending, expand, runs, unique_sorted

HUGE_ORDER = 9
"""2 MiB: what the host gives and takes back as a whole."""
WARM_SECONDS = 1.0
"""How long a free frame stays warm."""
MAX_DROP_PAGES = 1 << 11
"""8 MiB: what goes back in one step at most, some tenths of a millisecond."""
WINDOW_PAGES = 1 << 14
"""64 MiB: what is looked through in one step."""


class WarmFrames:
    """The free memory of `buddy` over `arena`. `limit_pages` 0: every free frame goes back at once.

    `now`: the clock, in seconds. `given_back_pages` counts what went to the host.
    """

    __slots__ = ("_arena", "_buddy", "_freed_at", "_hand", "_now", "given_back_pages", "limit_pages")

    def __init__(self, arena: Arena, buddy: Buddy, limit_pages: int, now: Callable[[], float]) -> None:
        self._arena = arena
        self._buddy = buddy
        self._now = now
        self.limit_pages = limit_pages
        self.given_back_pages = 0
        self._hand = 0
        # Per frame, when it last became free as a whole.
        self._freed_at = np.full(-(-arena.num_pages >> HUGE_ORDER), -math.inf)

    def freed(self, start: Int64Array, order: Uint8Array) -> None:
        """These blocks were given to the buddy, touched: frames that are free as a whole now stay warm, or go back."""
        if self._buddy.max_order < HUGE_ORDER or not start.size:
            return
        frames = start >> HUGE_ORDER
        if int(order.max()) > HUGE_ORDER:
            large = order > HUGE_ORDER
            frames = expand(frames, np.where(large, 1 << np.maximum(order.astype(np.int64) - HUGE_ORDER, 0), 1))
        frames = unique_sorted(ascending(frames)) << HUGE_ORDER
        if int(order.min()) < HUGE_ORDER:
            frames = frames[frames + FRAME_PAGES <= self._buddy.num_pages]
            frames = frames[self._buddy.wholly_free(frames, HUGE_ORDER)]
        if frames.size:
            self._keep(frames)

    def freed_one(self, start: int, order: int) -> None:
        """As `freed`, for one block."""
        if order > HUGE_ORDER:
            self._keep(np.arange(start, start + (1 << order), FRAME_PAGES))
            return
        frame = start >> HUGE_ORDER << HUGE_ORDER
        if frame + FRAME_PAGES <= self._buddy.num_pages and self._buddy.is_free(frame, HUGE_ORDER):
            self._keep(np.array([frame]))

    def _keep(self, frames: Int64Array) -> None:
        excess = self._buddy.free_pages - self._buddy.clear_free_pages - self.limit_pages
        if excess > 0:
            # The lowest: the buddy hands out the highest first.
            over = -(-excess >> HUGE_ORDER)
            self._give_back(frames[:over], HUGE_ORDER)
            frames = frames[over:]
        self._freed_at[frames >> HUGE_ORDER] = self._now()

    @property
    def windows(self) -> int:
        """Calls of `drop_idle` that look at everything once."""
        return -(-self._arena.num_pages // WINDOW_PAGES)

    def drop_idle(self, max_runs: int) -> None:
        """Give the host small free pieces that were touched, and frames that idled for WARM_SECONDS, of one window.

        At most `max_runs` stretches and MAX_DROP_PAGES in one call, longest first; the next call goes on in the same
        window if it was these that there was too much of. With a limit of 0 no frame is warm.
        """
        first = self._hand * WINDOW_PAGES
        last = min(first + WINDOW_PAGES, self._arena.num_pages)
        before = self.given_back_pages
        pages = self._buddy.dirty_free_pages(first, last)
        if pages.size:
            self._drop(pages, first >> HUGE_ORDER, max_runs)
        if self.given_back_pages - before < MAX_DROP_PAGES:
            self._hand = (self._hand + 1) % max(1, self.windows)

    def _drop(self, pages: Int64Array, first_frame: int, max_runs: int) -> None:
        frame = (pages >> HUGE_ORDER) - first_frame
        whole = np.bincount(frame) == FRAME_PAGES
        freed_at = self._freed_at[first_frame : first_frame + whole.size]
        warm = whole & (freed_at > self._now() - WARM_SECONDS) & (self.limit_pages > 0)
        _, first, length = runs(pages[~warm[frame]])
        if first.size > max_runs:
            longest = np.sort(np.argsort(-length, kind="stable")[:max_runs])
            first, length = first[longest], length[longest]
        if int(length.sum()) > MAX_DROP_PAGES:
            used = int(np.searchsorted(np.cumsum(length), MAX_DROP_PAGES)) + 1
            first, length = first[:used], length[:used].copy()
            length[-1] -= int(length.sum()) - MAX_DROP_PAGES
        if first.size:
            self._give_back(expand(first, length), 0)

    def _give_back(self, starts: Int64Array, order: int) -> None:
        self.forget_bytes(starts, order)
        self._buddy.mark_clear(starts, order)

    def forget_bytes(self, starts: Int64Array, order: int) -> None:
        """Give the host what is behind these blocks (ascending), one madvise a run: they read as zeros."""
        _, first, count = runs(starts >> order)
        for page, pages in zip((first << order).tolist(), (count << order).tolist(), strict=True):
            self._arena.give_back(page, pages)
        self.given_back_pages += int(starts.size) << order
