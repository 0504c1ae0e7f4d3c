"""Prefetch: none, window, sequential, stride, tree."""

from ttmfs.policy.api import BO, Prefetch
from ttmfs.units import PAGE_SIZE

LEAF = (64 << 10) // PAGE_SIZE
"""Pages of a leaf of the tree."""
LEAVES = 32
"""Leaves of a block of 2 MiB."""


class NoPrefetch(Prefetch):
    """Nothing is brought in besides what a fault names."""


class Window(Prefetch):
    """The aligned window of `pages` pages around the fault.

    Source: Linux, mm/memory.c (`do_fault_around`, 16 pages); ttmfs' own `prefault` is such a window.
    """

    def __init__(self, pages: int = 16) -> None:
        self.pages = max(pages, 1)

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        start = first // self.pages * self.pages
        end = -(-(first + count) // self.pages) * self.pages
        return start, end - start


class Sequential(Prefetch):
    """What follows, twice as much each time that a fault goes on where the last one ended, up to `most` pages.

    Source: Linux, mm/readahead.c (`page_cache_sync_ra`, `get_next_ra_size`).
    """

    def __init__(self, most: int = 512) -> None:
        self.most = most
        self.next: dict[BO, tuple[int, int]] = {}

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        expected, window = self.next.get(bo, (0, 0))
        window = min(max(2 * window, count), self.most) if first == expected else 0
        self.next[bo] = first + count + window, window
        return first, count + window

    def removed(self, bo: BO, first: int, count: int) -> None:
        self.next.pop(bo, None)


class Stride(Prefetch):
    """What comes next when the last three faults of a BO were equally far apart.

    Source: Fu, Patel and Janssens, "Stride directed prefetching in scalar processors", MICRO 1992.
    """

    def __init__(self) -> None:
        self.last: dict[BO, tuple[int, int]] = {}

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        before, stride = self.last.get(bo, (first, 0))
        now = first - before
        if not now or now != stride:
            self.last[bo] = first, now
            return first, count
        self.last[bo] = first + stride, stride
        return first + stride, count

    def removed(self, bo: BO, first: int, count: int) -> None:
        self.last.pop(bo, None)


class Tree(Prefetch):
    """Leaves of 64 KiB in blocks of 2 MiB: the largest subtree around the fault that is more than half there, whole.

    Source: NVIDIA open-gpu-kernel-modules, uvm_perf_prefetch.c (`uvm_perf_prefetch_threshold`, 51 percent).
    """

    def __init__(self, percent: int = 50) -> None:
        self.percent = percent
        self.blocks: dict[BO, dict[int, int]] = {}

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        start, end = first // LEAF, -(-(first + count) // LEAF)
        low, high, blocks = start, end, self.blocks.setdefault(bo, {})
        for block in range(start // LEAVES, (end - 1) // LEAVES + 1):
            base = block * LEAVES
            node = range(max(start - base, 0), min(end - base, LEAVES))
            there = blocks.get(block, 0) | _bits(node)
            for size in (2, 4, 8, 16, 32):
                parent = range(node.start // size * size, node.start // size * size + size)
                if node.stop <= parent.stop and (there & _bits(parent)).bit_count() * 100 > size * self.percent:
                    node = parent
            blocks[block] = there | _bits(node)
            low, high = min(low, base + node.start), max(high, base + node.stop)
        return low * LEAF, (high - low) * LEAF

    def removed(self, bo: BO, first: int, count: int) -> None:
        start, end = first // LEAF, -(-(first + count) // LEAF)
        known, blocks = self.blocks.get(bo, {}), range(start // LEAVES, (end - 1) // LEAVES + 1)
        for block in [block for block in known if block in blocks] if len(known) < len(blocks) else blocks:
            gone = range(max(start - block * LEAVES, 0), min(end - block * LEAVES, LEAVES))
            known[block] = known.get(block, 0) & ~_bits(gone)
            if not known[block]:
                del known[block]
        if not known:
            self.blocks.pop(bo, None)


def _bits(leaves: range) -> int:
    return (1 << leaves.stop) - (1 << leaves.start)
