"""Blocks: what the buddy allocator hands out, power-of-two blocks of pages in allocation order."""

from dataclasses import dataclass

import numpy as np

from ttmfs.memory.runs import Int64Array, Uint8Array, Uint32Array, expand
from ttmfs.units import PAGE_SHIFT


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """`n` allocated blocks.

    `start`: int64 (n,), first page of each; `order`: uint8 (n,), each has 2**order pages; `num_pages`: pages in all.
    """

    start: Int64Array
    order: Uint8Array
    num_pages: int

    @classmethod
    def of(cls, start: Int64Array, order: Uint8Array) -> "Blocks":
        """Blocks from their starts and orders."""
        return cls(start, order, int(np.left_shift(1, order, dtype=np.int64).sum()))

    def __len__(self) -> int:
        return len(self.start)

    @property
    def contiguous(self) -> bool:
        """Whether each block begins where the one before it ends."""
        sizes = np.left_shift(1, self.order, dtype=np.int64)
        return bool((self.start[1:] == self.start[:-1] + sizes[:-1]).all())

    def pages(self) -> Uint32Array:
        """All page numbers in allocation order, uint32 (num_pages,)."""
        return expand(self.start, np.left_shift(1, self.order, dtype=np.int64)).astype(np.uint32)

    def dump(self) -> str:
        """One line per block, `%#018llx-%#018llx: %llu`: first byte, end, size in bytes (drm_buddy_block_print)."""
        lines = []
        for start, order in zip(self.start.tolist(), self.order.tolist(), strict=True):
            first, size = start << PAGE_SHIFT, 1 << (order + PAGE_SHIFT)
            lines.append(f"{first:#018x}-{first + size:#018x}: {size}\n")
        return "".join(lines)
