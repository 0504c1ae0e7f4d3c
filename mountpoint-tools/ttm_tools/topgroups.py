"""ttm-top's screen of the groups: what each has of each region, what protects it, how often it was evicted."""

from typing import Any

from rich.text import Text

from ttm_tools.bolist import place_colour
from ttm_tools.device import Device
from ttm_tools.groups import Share, shares
from ttm_tools.threads import in_thread
from ttm_tools.topparts import bar
from ttm_tools.topsheet import Sheet
from ttm_tools.words import count_text, shown, size_text

_NAME = 24


class Groups(Sheet):
    """All of them, read anew every interval."""

    def __init__(self, device: Device, interval: float) -> None:
        super().__init__("groups", interval)
        self.device = device

    async def text(self, width: int) -> Text:
        """See Sheet."""
        return groups_text(await in_thread(self.device.stats), width)


def groups_text(stats: dict[str, Any], width: int) -> Text:
    """The whole screen: a line for each group and region, but where a group has nothing and nothing is set."""
    text = Text("groups", no_wrap=True)
    text.append("  the mark in a bar is the end of what protects it\n", "dim")
    lines = [_line(share, width) for share in shares(stats) if share.group == "/" or not share.quiet]
    return Text("\n", no_wrap=True).join([text, *lines]) if lines else Text("this mount has no groups")


def _line(share: Share, width: int) -> Text:
    """`/game  vram ██████│    32M  50%  low 48M  max 64M  3 evicted`."""
    values = share.values
    wide = max(8, width - _NAME - 66)
    colour, background = place_colour(share.region), "on #2a2f3a"
    text = Text(no_wrap=True)
    name = shown(share.group)
    text.append(f"{name if len(name) <= _NAME else '…' + name[1 - _NAME :]:<{_NAME}} ", "bold")
    text.append(f"{share.region:<8.8} ", colour)
    drawn = bar(values["current"] / share.size if share.size else 0.0, wide)
    mark = max(values["effective_min"], values["effective_low"])
    cut = min(wide - 1, round(wide * mark / share.size)) if mark and share.size else wide
    text.append(drawn[:cut], f"{colour} {background}")
    if cut < wide:
        text.append("│", f"bold white {background}")
        text.append(drawn[cut + 1 :], f"{colour} {background}")
    text.append(f" {size_text(values['current']):>6} {100 * values['current'] / max(1, share.size):3.0f}%")
    for key in ("min", "low"):
        text.append(f"  {key} {size_text(values[key]):<6}", "" if values[key] else "dim")
    bounded = values["max"] < share.size
    text.append(f"  max {size_text(values['max']):<6}", "" if bounded else "dim")
    text.append(f"  {count_text(values['evictions'])} evicted", "" if values["evictions"] else "dim")
    return text
