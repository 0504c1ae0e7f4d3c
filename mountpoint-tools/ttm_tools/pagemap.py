"""regions/NAME/map as arrays: which BO and which block order has each page of a region.

The file is tab-separated: a header `first pages order bo`, then one line per run of pages of one BO in blocks of one
order, ascending by page. Free pages are not listed. `(ghost)` is a BO that is on its way out, `(pool)` pages that the
pool keeps.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.mounts import unescape

PAGE: Final = 4096
GHOST: Final = "(ghost)"
POOL: Final = "(pool)"
FREE: Final = -1
BENEFICIAL: Final = 9
"""The order that is worth having: 2 MiB."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """A region's map. Arrays have one element a run: first page, pages, order, index into `owners`.

    `pages` is the region's size, `visible` what of it the CPU can reach from its start, both in pages; `used` bytes.
    """

    name: str
    pages: int
    visible: int
    used: int
    owners: list[str]
    first: Ints
    count: Ints
    order: Ints
    owner: Ints

    @property
    def has_blocks(self) -> bool:
        """False for a manager of addresses (gtt), which has no blocks: all its runs are of order 0."""
        return self.name == "system" or not len(self.order) or bool((self.order > 0).any())

    def by_page(self, values: Ints) -> Ints:
        """A value per run spread over the region's pages; FREE where nothing is."""
        out = np.full(self.pages, FREE, np.int64)
        if len(self.first):
            inside = np.minimum(self.first + self.count, self.pages) - self.first
            starts = np.repeat(self.first - np.concatenate(([0], np.cumsum(inside)[:-1])), inside)
            out[starts + np.arange(len(starts))] = np.repeat(values, inside)
        return out

    def pages_of(self) -> dict[str, int]:
        """Pages by owner, most first."""
        sums = np.bincount(self.owner, weights=self.count, minlength=len(self.owners)).astype(int)
        ranked = sorted(zip(self.owners, sums, strict=True), key=lambda item: (-item[1], item[0]))
        return {name: int(pages) for name, pages in ranked}

    def pages_by_order(self) -> dict[int, int]:
        """Pages in blocks of each order, largest order first."""
        found = {}
        for order in sorted(set(self.order.tolist()), reverse=True):
            found[order] = int(self.count[self.order == order].sum())
        return found


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """How broken the free space is. `unusable` is the part of the free pages (0..1) outside every free aligned block of
    the beneficial order: what a BO that wants such blocks cannot have. Pages that the pool keeps count as free.
    """

    free: int
    runs: int
    largest: int
    unusable: float
    beneficial: float
    """The part of the used pages that lies in blocks of the beneficial order or larger."""


def fragmentation(region: Region, order: int = BENEFICIAL) -> Fragmentation:
    """Of a whole region."""
    pool = region.owners.index(POOL) if POOL in region.owners else FREE - 1
    taken = region.owner != pool
    first, count = region.first[taken], region.count[taken]
    begins = np.concatenate(([0], first + count))
    ends = np.concatenate((first, [region.pages]))
    some = ends > begins
    begins, ends = begins[some], ends[some]
    lengths = ends - begins
    block = 1 << order
    usable = np.maximum(0, (ends >> order) - (-(-begins >> order))) * block
    free = int(lengths.sum())
    used = int(count.sum())
    high = int(count[region.order[taken] >= order].sum())
    return Fragmentation(
        free,
        len(lengths),
        int(lengths.max(initial=0)),
        1 - int(usable.sum()) / free if free else 0.0,
        high / used if used else 0.0,
    )


def parse_map(name: str, lines: Iterable[str], size: int, visible: int, used: int) -> Region:
    """The text of a map beside the region's size, visible size and usage in bytes. MountError for another format."""
    rows = iter(lines)
    header = next(rows, "").rstrip("\n").split("\t")
    if header[:4] != ["first", "pages", "order", "bo"]:
        raise MountError(f"regions/{name}/map does not begin with first, pages, order, bo: another version?", NO_MOUNT)
    index: dict[str, int] = {}
    table: list[tuple[int, int, int, int]] = []
    pages = size // PAGE
    end = 0
    for line in rows:
        fields = line.rstrip("\n").split("\t", 3)
        try:
            first, count, order = map(int, fields[:3])
            owner = index.setdefault(fields[3], len(index))
        except (ValueError, IndexError):
            raise MountError(f"regions/{name}/map: {line.rstrip()[:80]!r} is no run of pages", NO_MOUNT) from None
        if first < end or count <= 0 or first + count > pages:
            raise MountError(
                f"regions/{name}/map: pages {first} to {first + count} overlap others, or are none of the {pages}"
            )
        end = first + count
        table.append((first, count, order, owner))
    columns = np.array(table, np.int64).reshape(-1, 4).T
    owners = [text if text in (GHOST, POOL) else unescape(text) for text in index]
    return Region(name, pages, min(visible // PAGE, pages), used, owners, *(np.ascontiguousarray(c) for c in columns))
