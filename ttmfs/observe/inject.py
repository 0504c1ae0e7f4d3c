"""Fault injection in the style of the kernel's fault attributes (lib/fault-inject.c).

Each named place asks `should_fail()` when it is reached. Nothing fails until `probability` is set.
"""

import errno
import random
from collections.abc import Callable, Iterator
from typing import Final

from ttmfs.errors import TtmError

PLACES: Final = (
    "page_alloc",
    "resource_alloc",
    "tt_create",
    "fence_slot",
    "deps_grow",
    "fence_array",
    "ghost",
    "unmap",
    "move",
    "engine",
    "work_alloc",
    "store_write",
    "store_read",
    "interrupt",
)

_BOUNDS: Final = {"probability": (0, 100), "interval": (1, 1 << 31), "times": (-1, 1 << 31), "space": (0, 1 << 62)}
KEYS: Final = tuple(_BOUNDS)


FailureHook = Callable[[], bool]
"""Fault injection: True, or a MemoryError or TtmError raised, makes the allocation at hand fail."""


def should_fail(hook: FailureHook | None) -> bool:
    """Whether the injected failure strikes now (should_fail of the kernel's fault attributes)."""
    if hook is None:
        return False
    try:
        return hook()
    except (MemoryError, TtmError):
        return True


class FaultAttr:
    """One place: fails `probability` percent of the calls, each `interval`-th, at most `times` (-1: no limit), the
    first `space` units never."""

    __slots__ = ("_count", "_random", "interval", "probability", "space", "times")

    def __init__(self) -> None:
        self.probability = 0
        self.interval = 1
        self.times = 1
        self.space = 0
        self._count = 0
        self._random = random.Random(0)

    def should_fail(self, size: int = 1) -> bool:
        """Ask once, for `size` units of work."""
        if not self.probability or not self.times:
            return False
        if self.space > 0:
            self.space = max(0, self.space - size)
            return False
        self._count += 1
        if self.interval > 1 and self._count % self.interval:
            return False
        if self._random.randrange(100) >= self.probability:
            return False
        if self.times > 0:
            self.times -= 1
        return True

    def set(self, key: str, text: str) -> None:
        """Set one of KEYS from text. TtmError(EINVAL)."""
        text = text.strip()
        low, high = _BOUNDS[key]
        digits = text[1:] if text.startswith("-") else text
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20 and low <= int(text) <= high):
            raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say a number from {low} to {high}")
        setattr(self, key, int(text))
        if key == "interval":
            self._count = 0


class Injection:
    """All places of one device, as attributes: `injection["engine"].should_fail()`."""

    def __init__(self) -> None:
        self._places = {name: FaultAttr() for name in PLACES}
        self.ban_memcpy = False
        """The CPU may not copy for an engine that failed."""

    def __getitem__(self, name: str) -> FaultAttr:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def check(self, name: str, error: int, what: str, size: int = 1) -> None:
        """Raise TtmError(error) when the place is to fail, for `size` units of work (pages, where it is about them)."""
        if self._places[name].should_fail(size):
            raise TtmError(error, f"{what} failed (injected by debug/fail_{name})")
