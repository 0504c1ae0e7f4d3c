"""Page maps as a picture (PNG, SVG, PDF: what matplotlib writes) and as lines for a terminal."""

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

from ttm_tools import colours
from ttm_tools.extras import needed
from ttm_tools.pagemap import BENEFICIAL, GHOST, PAGE, POOL, Region, fragmentation
from ttm_tools.words import shown, size_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND: Final = 14
"""So many BOs are named; the rest is counted."""


def facts(region: Region) -> str:
    """One line: size, usage, the visible part, how broken the free space is."""
    broken = fragmentation(region)
    parts = [f"{size_text((region.pages - broken.free) * PAGE)} of {size_text(region.pages * PAGE)} used"]
    if region.visible < region.pages:
        parts.append(f"the CPU sees {size_text(region.visible * PAGE)}")
    free = f"{size_text(broken.free * PAGE)} free"
    if broken.free:
        runs = "1 piece" if broken.runs == 1 else f"{broken.runs} pieces"
        free += f" in {runs}, the largest {size_text(broken.largest * PAGE)}"
    parts.append(free)
    if broken.free and region.has_blocks:
        parts.append(f"{100 * broken.unusable:.0f}% of it too broken for 2 MiB blocks")
    if len(region.order) and region.has_blocks:
        parts.append(f"{100 * broken.beneficial:.0f}% of the used in blocks of order {BENEFICIAL} and more")
    return " · ".join(parts)


def legend(regions: list[Region], most: int = LEGEND) -> tuple[list[str], int]:
    """The `most` owners worth naming, most pages first, ghosts and the pool last; and how many are not named."""
    sums: dict[str, int] = {}
    for region in regions:
        for name, pages in region.pages_of().items():
            sums[name] = sums.get(name, 0) + pages
    special = [name for name in (GHOST, POOL) if sums.pop(name, 0)]
    ranked = sorted(sums, key=lambda name: (-sums[name], name))
    return ranked[:most] + special, max(0, len(ranked) - most)


def orders_present(regions: list[Region]) -> list[int]:
    """All orders in use, largest first."""
    return sorted({order for region in regions if region.has_blocks for order in region.order.tolist()}, reverse=True)


# -- matplotlib --------------------------------------------------------------------------------------------------------


def draw(regions: list[Region], path: str | None, by: str, title: str) -> "Figure":
    """A picture of regions below each other, and, if `path` is given, a file of it: the format follows from the name.

    `by` is `bo` or `order`. OSError, ValueError (format), MountError (no matplotlib).
    """
    # matplotlib takes half a second to import, which a terminal picture need not wait for.
    with needed("a picture", "matplotlib", "tools"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

    names, more = legend(regions)
    named = colours.spread(names)
    shapes = [_shape(region) for region in regions]
    heights = [max(0.5, 0.034 * rows) for _columns, rows in shapes]
    height = sum(heights) + 0.86 * len(regions) + 0.7
    figure = Figure(figsize=(12, height), dpi=110)
    FigureCanvasAgg(figure)
    top = 1 - 0.62 / height
    figure.text(0.06, 1 - 0.32 / height, title, fontsize=13, weight="bold", va="center")
    for region, shape, tall in zip(regions, shapes, heights, strict=True):
        bottom = top - (tall + 0.22) / height
        axes = figure.add_axes((0.06, bottom, 0.72, tall / height))
        _draw_region(axes, region, shape, by, named)
        top = bottom - 0.64 / height
    _draw_legend(figure, regions, by, named, more, 1 - 0.75 / height)
    if path is not None:
        figure.savefig(path)
    return figure


def _shape(region: Region) -> tuple[int, int]:
    """(columns, rows) of cells for a region: at most 256 columns and 96 rows."""
    columns = 256 if region.pages > 2048 else 64
    return columns, min(96, max(4, math.ceil(region.pages / columns)))


def _draw_region(axes: Any, region: Region, shape: tuple[int, int], by: str, named: dict[str, Any]) -> None:
    columns, most_rows = shape
    values, per_cell = colours.cells(region, by, columns * most_rows, named)
    rows = math.ceil(len(values) / columns)
    image = np.ones((rows * columns, 3), np.float32)
    image[: len(values)] = values
    axes.imshow(image.reshape(rows, columns, 3), aspect="auto", interpolation="nearest")
    axes.set_title(shown(region.name), loc="left", fontsize=11, weight="bold", pad=4)
    axes.set_xticks([])
    row_bytes = columns * per_cell * PAGE
    marks = np.unique(np.linspace(0, rows, min(rows, 4) + 1).astype(int))
    axes.set_yticks(marks - 0.5, [size_text(mark * row_bytes) for mark in marks], fontsize=7)
    below = f"{facts(region)}\none cell is {size_text(per_cell * PAGE)}, one row {size_text(row_bytes)}"
    axes.annotate(below, (0, 0), (0, -4), "axes fraction", "offset points", va="top", fontsize=7.2, color="0.25")
    if region.visible < region.pages:
        cell = region.visible / per_cell
        row, column = divmod(cell, columns)
        row = math.floor(row)
        x, y = [-0.5, column - 0.5, column - 0.5, columns - 0.5], [row + 0.5, row + 0.5, row - 0.5, row - 0.5]
        if column < 0.5:
            x, y = [-0.5, columns - 0.5], [row - 0.5, row - 0.5]
        axes.plot(x, y, color="black", linewidth=1.6, linestyle=(0, (4, 2)), clip_on=False)
        where = (columns - 0.5, row - 0.5)
        axes.annotate(
            "the CPU sees\nwhat is above", where, (4, 0), textcoords="offset points", fontsize=6.5, va="center"
        )


def _draw_legend(figure: Any, regions: list[Region], by: str, named: dict[str, Any], more: int, top: float) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    if by == "order":
        present = orders_present(regions)
        patches = [
            Patch(facecolor=colours.of_order(order), label=f"order {order}: {size_text(PAGE << order)}")
            for order in present
        ]
        if not all(region.has_blocks for region in regions):
            patches.append(Patch(facecolor=colours.ADDRESS_COLOUR, label="addresses: no blocks"))
        patches += [Patch(facecolor=colours.of_name(name), label=name) for name in (GHOST, POOL) if name in named]
    else:
        patches = [Patch(facecolor=colour, label=_short(name)) for name, colour in named.items()]
        if more:
            patches.append(Patch(facecolor="none", label=f"and {more} more"))
    patches.append(Patch(facecolor=colours.FREE_COLOUR, edgecolor="0.7", label="free"))
    # A label that matplotlib would leave out (a leading underscore) or read as a formula is a name like any other.
    box = figure.legend(
        patches,
        [str(patch.get_label()).replace("$", r"\$") for patch in patches],
        loc="upper left",
        bbox_to_anchor=(0.855, top),
        fontsize=8,
        frameon=False,
        title="page order" if by == "order" else "buffer object",
        title_fontsize=9,
        alignment="left",
    )
    box.get_title().set_weight("bold")


def _short(name: str, most: int = 22) -> str:
    text = shown(name)
    return text if len(text) <= most else "…" + text[1 - most :]


# -- terminals ---------------------------------------------------------------------------------------------------------


def _style(above: Any, below: Any) -> Style:
    def hexed(colour: Any) -> str:
        return "#" + "".join(f"{round(255 * min(1.0, max(0.0, float(part)))):02x}" for part in colour)

    return Style(color=hexed(above), bgcolor=hexed(below))


def terminal(regions: list[Region], by: str, width: int, rows: int = 16) -> list[Any]:
    """Rich renderables: two rows of cells a line (upper half blocks), and a legend."""
    names, more = legend(regions)
    named = colours.spread(names)
    columns = max(16, min(128, width - 2))
    out: list[Any] = []
    for region in regions:
        out.append(Text.assemble((shown(region.name), "bold"), "  ", (facts(region), "dim")))
        values, per_cell = colours.cells(region, by, columns * 2 * rows, named)
        lines = math.ceil(len(values) / (2 * columns))
        image = np.full((lines * 2 * columns, 3), np.nan, np.float32)
        image[: len(values)] = values
        pairs = image.reshape(lines, 2, columns, 3)
        cut = region.visible // per_cell if region.visible < region.pages else -1
        segments = []
        for number, (above, below) in enumerate(pairs):
            for column in range(columns):
                if np.isnan(above[column, 0]):
                    break
                if np.isnan(below[column, 0]):
                    segments.append(Segment("▀", _style(above[column], above[column]) + Style(bgcolor="default")))
                else:
                    segments.append(Segment("▀", _style(above[column], below[column])))
            mark = "◂ the CPU sees up to here" if number == cut // (2 * columns) and cut >= 0 else ""
            segments += [Segment(f" {mark}"[: max(0, width - columns)], Style(bold=True)), Segment.line()]
        out.append(Segments(segments))
        out.append(
            Text(f"one cell is {size_text(per_cell * PAGE)}, a line {size_text(2 * columns * per_cell * PAGE)}\n")
        )
    out.append(_terminal_legend(regions, by, named, more))
    return out


def _terminal_legend(regions: list[Region], by: str, named: dict[str, Any], more: int) -> Text:
    if by == "order":
        entries = [(f"order {order}", colours.of_order(order)) for order in orders_present(regions)]
        if not all(region.has_blocks for region in regions):
            entries.append(("addresses: no blocks", colours.ADDRESS_COLOUR))
        entries += [(name, colours.of_name(name)) for name in (GHOST, POOL) if name in named]
    else:
        entries = [(_short(name), colour) for name, colour in named.items()]
    entries.append(("free", colours.FREE_COLOUR))
    text = Text()
    for name, colour in entries:
        text.append("██", _style(colour, colour))
        # Blanks that do not break keep a colour and its name on one line.
        text.append("\u00a0" + name.replace(" ", "\u00a0"))
        text.append("   ")
    if more:
        text.append(f"and {more} more")
    return text
