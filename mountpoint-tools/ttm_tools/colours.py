"""Colours of pages: by BO (the same name has the same colour in every picture) or by order (a scale)."""

import colorsys
import zlib
from typing import Final

import numpy as np
import numpy.typing as npt

from ttm_tools.pagemap import FREE, GHOST, POOL, Region

Colours = npt.NDArray[np.float32]
"""Rows of red, green, blue, 0..1."""

FREE_COLOUR: Final = (0.93, 0.93, 0.94)
GHOST_COLOUR: Final = (0.18, 0.18, 0.20)
POOL_COLOUR: Final = (0.72, 0.72, 0.75)
ADDRESS_COLOUR: Final = (0.50, 0.60, 0.68)
_SCALE: Final = (
    (0.99, 0.71, 0.20),
    (0.98, 0.58, 0.25),
    (0.93, 0.46, 0.34),
    (0.85, 0.36, 0.44),
    (0.76, 0.28, 0.52),
    (0.64, 0.21, 0.58),
    (0.52, 0.17, 0.62),
    (0.41, 0.15, 0.63),
    (0.29, 0.16, 0.62),
    (0.17, 0.20, 0.58),
    (0.05, 0.25, 0.50),
)
"""Order 0 to 10: warm is fragmented, cold is whole."""


def of_name(name: str) -> tuple[float, float, float]:
    """The colour of a BO."""
    if name == GHOST:
        return GHOST_COLOUR
    if name == POOL:
        return POOL_COLOUR
    digest = zlib.crc32(name.encode("utf-8", "surrogateescape")) * 2654435761 & 0xFFFFFFFF
    hue, light, strength = digest / 2**32, (0.42, 0.52, 0.62)[digest % 3], (0.55, 0.75)[digest % 2]
    return colorsys.hls_to_rgb(hue, light, strength)


def spread(names: list[str]) -> dict[str, tuple[float, float, float]]:
    """Colours of a few names that stand beside each other: their own, moved apart where two are alike."""
    found: dict[str, tuple[float, float, float]] = {}
    for name in names:
        colour = of_name(name)
        hue, light, strength = colorsys.rgb_to_hls(*colour)
        for _ in range(24):
            if name in (GHOST, POOL) or all(_distance(colour, other) > 0.28 for other in found.values()):
                break
            hue = (hue + 0.381966) % 1
            colour = colorsys.hls_to_rgb(hue, light, strength)
        found[name] = colour
    return found


def _distance(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)


def of_order(order: int) -> tuple[float, float, float]:
    """The colour of an order."""
    return _SCALE[min(max(order, 0), len(_SCALE) - 1)]


def cells(region: Region, by: str, most: int, named: dict[str, tuple[float, float, float]]) -> tuple[Colours, int]:
    """A region as at most `most` coloured cells in page order, and how many pages (a power of two) one cell is.

    A cell of several pages has their mean colour. The last cell may be part of a page range that is not there; it has
    the colour of what is.
    """
    per_cell = 1
    while region.pages > most * per_cell:
        per_cell *= 2
    if by == "order":
        palette = [of_order(order) if region.has_blocks else ADDRESS_COLOUR for order in range(len(_SCALE))]
        values = region.by_page(np.clip(region.order, 0, len(_SCALE) - 1))
        special = {index: of_name(name) for index, name in enumerate(region.owners) if name in (GHOST, POOL)}
        if special:
            owner = region.by_page(region.owner)
            for index, colour in special.items():
                values[owner == index] = len(palette)
                palette.append(colour)
    else:
        palette = [named.get(name) or of_name(name) for name in region.owners]
        values = region.by_page(region.owner)
    table = np.array([*palette, FREE_COLOUR], np.float32)
    values[values == FREE] = len(table) - 1
    count = -(-region.pages // per_cell)
    if per_cell == 1:
        return table[values], 1
    sums = np.zeros((count, 3), np.float32)
    for channel in range(3):
        sums[:, channel] = np.add.reduceat(table[values, channel], np.arange(0, region.pages, per_cell))
    sizes = np.full(count, per_cell, np.float32)
    sizes[-1] = region.pages - (count - 1) * per_cell
    return sums / sizes[:, None], per_cell
