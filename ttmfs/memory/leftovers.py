"""Leftovers: memory that was given back in one go and is taken apart into blocks some pages at a time.

To find the blocks of a quarter of a gigabyte takes milliseconds, which everything else on the loop would wait for. So
whoever gives much back says only how much it is and how to get at the page numbers; it counts as free from then on,
and is to be had as soon as anybody asks for it: the pool takes apart what it needs at once. Otherwise whoever listens
to `bell` takes a step when others have had their turn.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from ttmfs.memory.pool_types import Caching
from ttmfs.memory.runs import PageArray
from ttmfs.sync.bell import Bell
from ttmfs.units import MAX_ORDER

STEP_PAGES: Final = 1 << 10
"""How many pages are taken apart in one step, about: some tens of microseconds."""
IN_A_LULL: Final = 8
"""So many steps in one while no client wants anything: some tenths of a millisecond."""


class _Left:
    """What somebody gave back in one go."""

    __slots__ = ("caching", "parts", "rest", "to_pool")

    def __init__(self, parts: Iterator[PageArray], caching: Caching, to_pool: bool) -> None:
        self.parts = parts
        self.rest: PageArray = np.empty(0, np.uint32)
        """Pages whose block goes on in the next part."""
        self.caching = caching
        self.to_pool = to_pool


class Leftovers:
    """None yet. `pages`: how many are not taken apart; `bell` rings when there are some."""

    __slots__ = ("_free_by_order", "_give_back", "_left", "_whole_blocks", "bell", "pages")

    def __init__(
        self,
        free_by_order: Callable[[], list[int]],
        whole_blocks: Callable[[PageArray], int],
        give_back: Callable[[PageArray, Caching, bool], None],
    ) -> None:
        """`free_by_order`: how many free blocks of each order there are. `whole_blocks`: how many of some pages, from
        the first on, make up whole blocks. `give_back(pages, caching, to_pool)`: these become free, and blocks are
        split of which only a part goes.
        """
        self._free_by_order = free_by_order
        self._whole_blocks = whole_blocks
        self._give_back = give_back
        self._left: deque[_Left] = deque()
        self.pages = 0
        self.bell = Bell()

    def add(self, count: int, parts: Iterator[PageArray], caching: Caching, *, to_pool: bool) -> None:
        """`count` pages in all: those that `parts` gives, some at a time, of which nobody else has any."""
        self.pages += count
        self._left.append(_Left(parts, caching, to_pool))
        self.bell.ring()

    def are_needed_for(self, pages: int) -> bool:
        """Do the largest free blocks not suffice for so many pages? Then an allocation takes these apart first."""
        if not self._left:
            return False
        largest = sum(count << order for order, count in enumerate(self._free_by_order()) if order >= MAX_ORDER)
        return largest < pages >> MAX_ORDER << MAX_ORDER

    def step(self) -> bool:
        """Take about STEP_PAGES apart; False when nothing was left."""
        if not self._left:
            return False
        left = self._left[0]
        part = next(left.parts, None)
        pages = left.rest
        if part is not None:
            pages = np.concatenate((pages, part)) if pages.size else part
            # A block that goes on in the next part stays whole.
            whole = self._whole_blocks(pages)
            pages, left.rest = pages[:whole], pages[whole:]
        else:
            self._left.popleft()
        self.pages -= pages.size
        self._give_back(pages, left.caching, left.to_pool)
        return True

    def settle(self) -> None:
        """Take everything apart, at once."""
        while self.step():
            pass
