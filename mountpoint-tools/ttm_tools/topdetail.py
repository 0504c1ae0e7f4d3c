"""ttm-top's screen of one BO: its pages, when it is its turn to go, why it is where it is, its status."""

import itertools
from collections.abc import Iterable
from typing import Any, Final

from rich.style import Style
from rich.text import Text

from ttm_tools.bolist import place_colour
from ttm_tools.device import Device
from ttm_tools.threads import in_thread
from ttm_tools.topsheet import Sheet
from ttm_tools.why import last_of
from ttm_tools.words import shown, size_text

LETTERS: Final = {"s": "system", "g": "gtt", "v": "vram", "b": "in the store", "m": "moving", ".": "hole"}
_DARK: Final = {"b": "#ce93d8", "m": "#fff176", ".": "#546e7a"}

LRU_BOS: Final = 1000
"""A daemon makes the text of an LRU without a pause: of a longer one it is not asked for."""

WHY: Final = 4
"""Of what has happened to it, the last so many."""

Turn = tuple[int, int, str]
"""How many go before it, how many there are, who is the first."""


def strip(letters: str, width: int) -> Text:
    """A BO's pages in order as `width` letters or fewer: each the most frequent of its pages."""
    text = Text(no_wrap=True)
    cells = min(width, len(letters))
    for cell in range(cells):
        part = letters[cell * len(letters) // cells : (cell + 1) * len(letters) // cells]
        letter = max(set(part), key=lambda one: (part.count(one), one))
        colour = _DARK.get(letter) or place_colour(LETTERS.get(letter, ""))
        text.append(letter, Style(color="black", bgcolor=colour))
    return text


def turn_text(status: dict[str, Any], turn: Turn | None) -> str:
    """When it is its turn to be evicted."""
    place = status["mem_type"]
    if status["pin_count"]:
        return f"pinned {status['pin_count']} times: nothing moves it"
    if turn is None:
        return f"{place} has too many BOs to ask which goes next" if place != "none" else "it is nowhere"
    before, count, first = turn
    if before < 0:
        return f"not on the LRU of {place}"
    who = "it goes next" if before == 0 else f"{before} of {count} go before it, {shown(first)} first"
    return f"from {place}: {who} (priority {status['priority']})"


def detail_text(
    status: dict[str, Any], letters: str, turn: Turn | None, width: int, why: Iterable[str] = ()
) -> Text:
    """The whole screen."""
    text = Text()
    text.append(f"{shown(str(status['name']))}\n", "bold")
    text.append_text(strip(letters, width))
    counts = ", ".join(
        f"{LETTERS.get(letter, letter)} {len(list(same))}" for letter, same in itertools.groupby(sorted(letters))
    )
    text.append(f"\n{counts or 'no pages'}\n\n")
    text.append("who goes next  ", "bold")
    text.append(f"{turn_text(status, turn)}\n\n")
    sentences = [f"{shown(sentence)}\n" for sentence in why]
    if sentences:
        text.append("why\n", "bold")
        text.append("".join([*sentences, "\n"]))
    known = {**status, "size": f"{size_text(status['size'])} ({status['size']})"}
    lines = [f"{key:<22} {shown(_plain(value))}" for key, value in known.items() if key != "name"]
    if width >= 90:
        half = -(-len(lines) // 2)
        pairs = itertools.zip_longest(lines[:half], lines[half:], fillvalue="")
        lines = [f"{one:<{width // 2}.{width // 2 - 1}}{other}" for one, other in pairs]
    text.append("\n".join(lines))
    return text


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}:{count}" for key, count in value.items()) or "-"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value in ("", None) else str(value)


def read(device: Device, name: str) -> tuple[dict[str, Any], str, Turn | None, list[str]]:
    """A BO's status.json, its snapshot, its turn, and why. MountError, or OSError when it is gone."""
    status = device.json(f"objects/{name}/status.json")
    letters = device.text(f"objects/{name}/snapshot").rstrip("\n")
    region = status["mem_type"]
    bos = device.stats().get("regions", {}).get(region, {}).get("bos", LRU_BOS + 1)
    turn = None
    if bos <= LRU_BOS:
        names = [bo for _priority, bo, _size in device.lru(region)]
        turn = (names.index(name) if name in names else -1, len(names), names[0] if names else "")
    return status, letters, turn, last_of(device, name, WHY)


class Detail(Sheet):
    """One BO, read anew every interval."""

    def __init__(self, device: Device, name: str, interval: float) -> None:
        super().__init__(shown(name), interval)
        self.device = device
        self.bo = name

    async def text(self, width: int) -> Text:
        """See Sheet."""
        status, letters, turn, why = await in_thread(lambda: read(self.device, self.bo))
        return detail_text(status, letters, turn, width, why)
