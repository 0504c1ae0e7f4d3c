"""Parts of ttm-top's screen: bars of regions, rates, the line at the top."""

from typing import Any, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Sparkline, Static

from ttm_tools.bolist import place_colour
from ttm_tools.topmodel import Rate
from ttm_tools.words import size_text

_BLOCKS: Final = " ▏▎▍▌▋▊▉█"


def bar(part: float, width: int) -> str:
    """A bar of `width` characters, in eighths of one."""
    eighths = round(min(1.0, max(0.0, part)) * width * 8)
    if part > 0:
        eighths = max(1, eighths)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_BLOCKS[rest] if rest else "")).ljust(width)


def region_lines(regions: dict[str, dict[str, int]], width: int) -> Text:
    """A line a region; their bars end at the same place."""
    hidden = any(region.get("visible_size", region["size"]) < region["size"] for region in regions.values())
    view = hidden and width >= 100
    lines = [region_line(name, region, width - (28 if view else 0), view) for name, region in regions.items()]
    return Text("\n", no_wrap=True).join(lines)


def region_line(name: str, region: dict[str, int], width: int, view: bool) -> Text:
    """`vram  █████     │        48M of 64M  75%   12 BOs  CPU sees 20M of 32M`; the mark is where its view ends."""
    size, used = region["size"], region["used"]
    visible, visible_used = region.get("visible_size", size), region.get("visible_used", used)
    wide = max(10, width - 46)
    share = used / size if size else 0.0
    text = Text(no_wrap=True)
    text.append(f" {name:<8.8} ", f"bold {place_colour(name)}")
    drawn = bar(share, wide)
    cut = round(wide * visible / size) if size and visible < size else -1
    background = "on #2a2f3a"
    if 0 <= cut < wide:
        text.append(drawn[:cut], f"{place_colour(name)} {background}")
        text.append("│", f"bold white {background}")
        text.append(drawn[cut + 1 :], f"{place_colour(name)} {background}")
    else:
        text.append(drawn, f"{place_colour(name)} {background}")
    text.append(f" {size_text(used):>6} of {size_text(size):<6} {100 * share:3.0f}%")
    text.append(f"  {region.get('bos', 0):>6} BOs")
    if view and visible < size:
        text.append(f"  CPU sees {size_text(visible_used)} of {size_text(visible)}", "dim")
    return text


def header_line(mount: str, stats: dict[str, Any]) -> Text:
    """Which mount, what about its device is out of the ordinary, and what is pending."""
    bos, fences, requests = (stats.get(key, {}) for key in ("bos", "fences", "requests"))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" ttm-top  {mount}", "bold")
    said = stats.get("state", {}).get("says")
    if said:
        text.append("   ")
        text.append(f" {', '.join(said)} ", "bold black on #ffb74d")
    text.append(f"   {bos.get('count', 0)} BOs")
    for key, value in (
        ("ghosts", bos.get("ghosts", 0)),
        ("fences pending", fences.get("pending", 0)),
        ("requests waiting", requests.get("waiting", 0)),
        ("failed moves", stats.get("moves", {}).get("failed", 0)),
    ):
        text.append(f"   {value} {key}", "" if value else "dim")
    return text


class RateBox(Horizontal):
    """A rate and its last values."""

    DEFAULT_CSS = """
    RateBox { height: 1; }
    RateBox Static { width: 20; }
    RateBox Sparkline { height: 1; width: 1fr; }
    RateBox Sparkline .sparkline--min-color, RateBox Sparkline .sparkline--max-color { color: #4fc3f7; }
    """

    def __init__(self, rate: Rate) -> None:
        super().__init__()
        self.rate = rate

    def compose(self) -> ComposeResult:
        """See textual."""
        yield Static()
        yield Sparkline([0.0, 0.0])

    def draw(self) -> None:
        """The values of now."""
        self.query_one(Static).update(
            Text.assemble((f" {self.rate.name:<9}", "bold"), f"{self.rate.text(self.rate.now):>6}/s")
        )
        # A line has its lowest value at the bottom: that is to be nothing.
        self.query_one(Sparkline).data = [0.0, *self.rate.history, *([0.0] if not self.rate.history else ())]
