"""Placement: where a BO may live, in order of preference (ttm_place, ttm_placement).

A Placement is a tuple of Places. Validate walks it twice: the first pass takes only idle space and skips FALLBACK
places; the second may evict and skips DESIRED ones. The empty placement asks for gutting.

Text form, used by command files and attributes: `PLACE = REGION[:FLAG[+FLAG…]][@FIRST-LAST]`, the range in pages,
both ends included; `none` alone is the empty placement.
"""

import enum
import errno
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from ttmfs.errors import TtmError, no_such

SYSTEM: Final = "system"
GTT: Final = "gtt"
VRAM: Final = "vram"


class PlaceFlag(enum.Flag):
    """TTM_PL_FLAG_*."""

    NONE = 0
    CONTIGUOUS = enum.auto()
    """One run of pages."""
    TOPDOWN = enum.auto()
    """From the high end of the region."""
    TEMPORARY = enum.auto()
    """Never compatible: the next validate moves the BO out again (the multihop marker)."""
    DESIRED = enum.auto()
    """Only while nothing has to be evicted."""
    FALLBACK = enum.auto()
    """Only once evicting is allowed."""


@dataclass(frozen=True, slots=True)
class Place:
    """One acceptable place (ttm_place). `first` and `end` are pages; end is exclusive, 0 means no bound."""

    mem_type: str
    first: int = 0
    end: int = 0
    flags: PlaceFlag = PlaceFlag.NONE

    def __str__(self) -> str:
        text = self.mem_type
        if self.flags:
            text += ":" + "+".join(flag.name.lower() for flag in self.flags if flag.name)
        if self.first or self.end:
            text += f"@{self.first}-{self.end - 1}"
        return text


Placement = tuple[Place, ...]
NOWHERE: Final[Placement] = ()
"""The empty placement: gutting."""

_FLAGS: Final = {flag.name.lower(): flag for flag in PlaceFlag if flag.name}
_PLACE: Final = re.compile(r"(?P<region>[^:@]+)(?::(?P<flags>[^@]*))?(?:@(?P<range>.*))?", re.DOTALL)
MAX_PLACES: Final = 64
"""Places of one placement; drivers have three to eight. Each is tried at every validate."""
_NUMBER: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,18}")


def parse_place(word: str, regions: Collection[str]) -> Place:
    """The Place that `word` names. TtmError(EINVAL) naming the part that is wrong."""
    match = _PLACE.fullmatch(word)
    if match is None or match["region"] not in regions:
        raise no_such(word, "region", regions, " or none")
    flags = PlaceFlag.NONE
    if match["flags"] is not None:
        for name in match["flags"].split("+"):
            if name not in _FLAGS:
                raise no_such(name, f"placement flag (in {word[:80]!r})", _FLAGS)
            flags |= _FLAGS[name]
    first, end = _parse_range(match["range"], word) if match["range"] is not None else (0, 0)
    return Place(match["region"], first, end, flags)


def _parse_range(text: str, word: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    if not (dash and _NUMBER.fullmatch(low) and _NUMBER.fullmatch(high)):
        raise TtmError(errno.EINVAL, f"{word[:80]!r}: a range is @FIRST-LAST in pages, as in vram@0-1023")
    first, last = _number(low), _number(high)
    if last < first:
        raise TtmError(errno.EINVAL, f"{word[:80]!r}: the range ends before it starts")
    return first, last + 1


def _number(text: str) -> int:
    return int(text, 16) if text[:2].lower() == "0x" else int(text)


def parse_placement(words: Iterable[str], regions: Collection[str]) -> Placement:
    """A Placement from words; `none` alone is the empty one. TtmError(EINVAL) when none or too many are given."""
    listed = list(words)
    if listed == ["none"]:
        return NOWHERE
    if "none" in listed and "none" not in regions:
        raise TtmError(errno.EINVAL, "none drops the content of a BO: it stands alone, without another place")
    if not listed:
        raise TtmError(errno.EINVAL, f"name at least one place: {' '.join(regions)}, or none")
    if len(listed) > MAX_PLACES:
        raise TtmError(errno.EINVAL, f"{len(listed)} places: name at most {MAX_PLACES}")
    return tuple(parse_place(word, regions) for word in listed)


def format_placement(placement: Placement) -> str:
    """The text that parse_placement reads back."""
    return " ".join(map(str, placement)) or "none"
