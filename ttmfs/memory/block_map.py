"""BlockMap: which allocated block begins at which page (the kernel's page->private, the order of a page's block).

One byte per page. It lets pages be given back without their blocks at hand: from an array of page numbers it finds the
blocks, tells strangers and double frees, and cuts blocks as split_page does. All vectorised.
"""

import errno

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.blocks import Blocks
from ttmfs.memory.runs import Int64Array, PageArray, Uint8Array, ascending, expand, is_run, unique_sorted

_NO_BLOCKS = Blocks(np.empty(0, np.int64), np.empty(0, np.uint8), 0)


class BlockMap:
    """A map of `num_pages` pages with no block allocated."""

    __slots__ = ("_head", "_head_np", "max_order", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.max_order = num_pages.bit_length() - 1
        # Order + 1 of the block that begins at this page, else 0.
        self._head = bytearray(num_pages)
        self._head_np: Uint8Array = np.frombuffer(self._head, np.uint8)

    def own_one(self, start: int, order: int) -> None:
        """A block begins at `start`."""
        self._head[start] = order + 1

    def own(self, starts: Int64Array, orders: Uint8Array | int) -> None:
        """Blocks begin at `starts`."""
        self._head_np[starts] = orders + 1

    def owns(self, start: int, order: int) -> bool:
        """Whether an allocated block of this order begins at `start`."""
        return 0 <= start < self.num_pages and self._head[start] == order + 1

    def drop_one(self, start: int, order: int) -> None:
        """The block is no longer allocated. Raises TtmError(EINVAL) when it is not."""
        if not self.owns(start, order):
            raise self._foreign(start, order)
        self._head[start] = 0

    def drop(self, starts: Int64Array) -> None:
        """These (checked) blocks are no longer allocated."""
        self._head_np[starts] = 0

    def order_map(self) -> Uint8Array:
        """Per page, the order + 1 of the allocated block that it is in, 0 when it is in none; uint8, a copy."""
        orders = self._head_np.copy()
        heads = np.flatnonzero(orders > 1)
        values = orders[heads]
        for value in np.flatnonzero(np.bincount(values)).tolist():
            order = value - 1
            rows = orders[: self.num_pages >> order << order].reshape(-1, 1 << order)
            rows[heads[values == value] >> order] = value
        return orders

    def owners_of(self, first: int, last: int) -> Int64Array:
        """Per page of [first, last), how many allocated blocks it is in: one, or none.

        AssertionError for a block that begins there and is not aligned to its order, or ends beyond the end.
        """
        heads = np.flatnonzero(self._head_np[first:last])
        sizes = np.left_shift(1, self._head_np[first:last][heads] - 1, dtype=np.int64)
        assert not ((heads + first) & (sizes - 1)).any(), "allocated: a block is not aligned to its order"
        ends = heads + sizes
        assert not ends.size or int(ends.max()) + first <= self.num_pages, "allocated: a block beyond the end"
        size = last - first
        begun = np.bincount(heads, minlength=size) - np.bincount(np.minimum(ends, size), minlength=size + 1)[:size]
        before = (first >> order << order for order in range(self.max_order + 1))
        begun[0] += sum(head < first and self.owns(head, order) for order, head in enumerate(before))
        owners: Int64Array = np.cumsum(begun)
        return owners

    def check_allocated(self, blocks: Blocks) -> None:
        """Raise TtmError(EINVAL) unless all of them are allocated blocks of this place and order, each named once."""
        starts = ascending(blocks.start)
        if not starts.size:
            return
        if starts[0] < 0 or starts[-1] >= self.num_pages:
            raise self._foreign(int(starts[0] if starts[0] < 0 else starts[-1]), -1)
        wrong = self._head_np[blocks.start] != blocks.order + 1
        if wrong.any():
            index = int(wrong.argmax())
            raise self._foreign(int(blocks.start[index]), int(blocks.order[index]))
        twice = starts[1:] == starts[:-1]
        if twice.any():
            raise self._foreign(int(starts[int(twice.argmax())]), -1)

    def _foreign(self, start: int, order: int) -> TtmError:
        message = f"page {start} begins no allocated block of order {order}: freed twice, or not from here"
        if order < 0:
            message = f"page {start} is named twice, or is not from here"
        return TtmError(errno.EINVAL, message)

    def blocks_of(self, pages: PageArray) -> Blocks:
        """The allocated blocks that make up exactly these pages, in the order of `pages`.

        Raises TtmError(EINVAL) when they are not whole allocated blocks, each contiguous in the array (then in
        ascending order of pages, whatever the array's own, if that works out).
        """
        numbers = np.asarray(pages).astype(np.int64, copy=False)
        if not numbers.size:
            return _NO_BLOCKS
        if int(numbers.min()) < 0 or int(numbers.max()) >= self.num_pages:
            raise TtmError(errno.EINVAL, f"a page is not one of the {self.num_pages} there are")
        found = self._blocks_of_run(numbers) if is_run(pages) else None
        if found is None:
            found = self._whole_blocks(numbers)
        if found is None:
            found = self._whole_blocks(ascending(numbers))
        if found is None:
            raise TtmError(errno.EINVAL, "these pages are not whole allocated blocks: split them first")
        starts = ascending(found.start)
        if (starts[1:] == starts[:-1]).any():
            raise TtmError(errno.EINVAL, "a page is named twice")
        return found

    def whole_blocks(self, pages: PageArray) -> int:
        """How many of these pages, from the first on, make up whole blocks; 0 too where they are no blocks at all."""
        heads = self._head_np[pages]
        at = np.flatnonzero(heads)
        if not at.size:
            return 0
        last = int(at[-1])
        end = last + (1 << (int(heads[last]) - 1))
        return len(pages) if end == len(pages) else last

    def _blocks_of_run(self, numbers: Int64Array) -> Blocks | None:
        """As _whole_blocks, for neighbours in order: nothing is done page by page but to look for heads."""
        first, size = numbers.item(0), numbers.size
        heads = self._head_np[first : first + size]
        at = heads.nonzero()[0]
        orders = heads[at] - 1
        ends = at + np.left_shift(1, orders, dtype=np.int64)
        if not at.size or at.item(0) or ends.item(-1) != size or (ends[:-1] != at[1:]).any():
            return None
        return Blocks(at + first, orders, size)

    def _whole_blocks(self, numbers: Int64Array) -> Blocks | None:
        heads = self._head_np[numbers]
        if int(heads.max()) == 1 and int(heads.min()) == 1:
            return Blocks(numbers, np.zeros(numbers.size, np.uint8), numbers.size)
        is_head = heads != 0
        starts = numbers[is_head]
        orders = heads[is_head] - 1
        sizes = np.left_shift(1, orders, dtype=np.int64)
        if int(sizes.sum()) != numbers.size or not (expand(starts, sizes) == numbers).all():
            return None
        return Blocks(starts, orders, numbers.size)

    def heads_of(self, pages: PageArray) -> tuple[Int64Array, Uint8Array]:
        """Per page, start and order of the allocated block that it belongs to: int64 and uint8.

        Raises TtmError(EINVAL) when a page is not allocated.
        """
        numbers = np.asarray(pages).astype(np.int64, copy=False)
        starts = np.full(numbers.size, -1, np.int64)
        orders = np.zeros(numbers.size, np.uint8)
        if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= self.num_pages):
            raise TtmError(errno.EINVAL, f"a page is not one of the {self.num_pages} there are")
        missing = np.arange(numbers.size)
        for order in range(self.max_order + 1):
            if not missing.size:
                break
            head = numbers[missing] >> order << order
            found = self._head_np[head] == order + 1
            starts[missing[found]] = head[found]
            orders[missing[found]] = order
            missing = missing[~found]
        if missing.size:
            message = f"page {int(numbers[missing[0]])} is not allocated"
            raise TtmError(errno.EINVAL, message)
        return starts, orders

    def are_within(self, pages: PageArray, order: int) -> bool:
        """Is each of these pages in an allocated block of this order, or of a larger one?"""
        missing = np.asarray(pages).astype(np.int64, copy=False)
        for larger in range(order, self.max_order + 1):
            missing = missing[self._head_np[missing >> larger << larger] != larger + 1]
            if not missing.size:
                return True
        return not missing.size

    def split(self, pages: PageArray) -> None:
        """Cut allocated blocks so that `pages` (in any order) become whole blocks of their own (split_page).

        Only blocks that belong to `pages` in part change: both parts become their largest aligned blocks. Raises
        TtmError(EINVAL), with nothing changed, when a page is not allocated.
        """
        numbers = unique_sorted(ascending(np.asarray(pages).astype(np.int64, copy=False)))
        starts, orders = self.heads_of(numbers)
        for order in np.flatnonzero(np.bincount(orders)).tolist():
            if not order:
                continue
            mine = orders == order
            heads, index, count = np.unique(starts[mine], return_inverse=True, return_counts=True)
            inside = np.zeros((heads.size, 1 << order), np.uint8)
            inside[index, numbers[mine] - starts[mine]] = 1
            partly = count < 1 << order
            if partly.any():
                self._split_rows(heads[partly], inside[partly], order)

    def _split_rows(self, heads: Int64Array, inside: Uint8Array, order: int) -> None:
        # Level by level, a pair of equal halves is a candidate for one block; 2 marks a mixed one. What is not mixed
        # but has a mixed parent is a block of its own.
        self._head_np[heads] = 0
        labels = inside
        for level in range(order):
            pairs = labels.reshape(heads.size, -1, 2)
            parent = np.where(pairs[:, :, 0] == pairs[:, :, 1], pairs[:, :, 0], 2).astype(np.uint8)
            alone = (labels != 2) & (np.repeat(parent, 2, axis=1) == 2)
            row, column = np.nonzero(alone)
            self._head_np[heads[row] + (column << level)] = level + 1
            labels = parent
