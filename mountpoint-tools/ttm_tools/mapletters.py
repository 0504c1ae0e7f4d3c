"""Page maps as letters, for where there are no colours: pipes, NO_COLOR, paper, a screen reader."""

import string
from typing import Final

import numpy as np
import numpy.typing as npt

from ttm_tools.pagemap import FREE, GHOST, PAGE, POOL, Region
from ttm_tools.picture import facts, legend, orders_present
from ttm_tools.words import shown, size_text

NAMED: Final = string.ascii_uppercase + string.ascii_lowercase
OTHER: Final = "*"
SPECIAL: Final = {GHOST: "#", POOL: "%"}
ADDRESS: Final = "="
NOBODY: Final = "."
_ORDERS: Final = "0123456789X"


def letters_of(regions: list[Region]) -> dict[str, str]:
    """A letter for each owner: those with the most pages first, `*` for all that have none of their own."""
    names, _more = legend(regions, len(NAMED))
    own = [name for name in names if name not in SPECIAL]
    return {**dict(zip(own, NAMED, strict=False)), **SPECIAL}


def cells(region: Region, by: str, most: int, letters: dict[str, str]) -> tuple[str, int]:
    """A region as at most `most` letters in page order, and how many pages (a power of two) one stands for.

    A letter is that of the most pages of its cell.
    """
    per_cell = 1
    while region.pages > most * per_cell:
        per_cell *= 2
    codes = region.by_page(region.owner)
    table = [letters.get(name, OTHER) for name in region.owners]
    if by == "order":
        kept = {index: SPECIAL[name] for index, name in enumerate(region.owners) if name in SPECIAL}
        orders = region.by_page(np.clip(region.order, 0, len(_ORDERS) - 1))
        table = list(_ORDERS) if region.has_blocks else [ADDRESS] * len(_ORDERS)
        values = np.where(codes == FREE, FREE, orders)
        for index, letter in kept.items():
            values[codes == index] = len(table)
            table.append(letter)
        codes = values
    kinds = sorted({*table, NOBODY})
    numbers = np.array([kinds.index(letter) for letter in [*table, NOBODY]], np.int64)
    return "".join(kinds[kind] for kind in _most(numbers[codes], per_cell, len(kinds))), per_cell


def _most(kinds: npt.NDArray[np.int64], per_cell: int, count: int) -> list[int]:
    """The most frequent kind of each `per_cell` pages; of equals the lowest."""
    starts = np.arange(0, len(kinds), per_cell)
    sums = np.stack([np.add.reduceat((kinds == kind).astype(np.int32), starts) for kind in range(count)])
    found: list[int] = np.argmax(sums, axis=0).tolist()
    return found


def lines(regions: list[Region], by: str, width: int, rows: int) -> list[str]:
    """The whole text: a block of letters a region, and what they stand for."""
    letters = letters_of(regions)
    columns = max(16, min(128, width - 2))
    out: list[str] = []
    for region in regions:
        out.append(f"{shown(region.name)}  {facts(region)}")
        text, per_cell = cells(region, by, columns * rows, letters)
        cut = -(-region.visible // per_cell // columns) if region.visible < region.pages else -1
        for number, start in enumerate(range(0, len(text), columns)):
            if number == cut:
                out.append("-- the CPU sees no further than this line --")
            out.append(text[start : start + columns])
        out.append(f"one letter is {size_text(per_cell * PAGE)}, a line {size_text(columns * per_cell * PAGE)}")
        out.append("")
    out.append(_key(regions, by, letters))
    return out


def _key(regions: list[Region], by: str, letters: dict[str, str]) -> str:
    there = {name for region in regions for name in region.owners}
    if by == "order":
        present = dict.fromkeys(min(order, len(_ORDERS) - 1) for order in orders_present(regions))
        parts = [f"{_ORDERS[order]} order {order}{' and more' if order > 9 else ''}" for order in present]
        parts += [] if all(region.has_blocks for region in regions) else [f"{ADDRESS} addresses: no blocks"]
        parts += [f"{letter} {name}" for name, letter in SPECIAL.items() if name in there]
    else:
        parts = [f"{letter} {shown(name)}" for name, letter in letters.items() if name in there]
        parts += [f"{OTHER} others"] if there - set(letters) else []
    return "   ".join([*parts, f"{NOBODY} free"])
