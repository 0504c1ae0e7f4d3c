"""Fault injection in the style of the kernel's fault attributes (lib/fault-inject.c).

Each named place asks `should_fail()` when it is reached. Nothing fails until `probability` is set. `bo` and `pid` aim
it: what is reached for another BO, or on behalf of another process (ttmfs.observe.asker), is not counted.
"""

import errno
import random
from collections.abc import Callable, Iterator
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.observe.asker import ASKER

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
    "job",
    "work_alloc",
    "store_write",
    "store_read",
    "interrupt",
)

_BOUNDS: Final = {
    **{"probability": (0, 100), "interval": (1, 1 << 31), "times": (-1, 1 << 31), "space": (0, 1 << 62)},
    "pid": (0, 1 << 31),
}
KEYS: Final = (*_BOUNDS, "bo")
KNOW_NO_BO: Final = ("fence_slot",)
"""Places that are reached for a reservation, whoever's it is."""
KNOW_NO_PID: Final = ("engine", "job")
"""Places that only tasks of the device reach."""


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
    first `space` units never; only calls for the BO of the name `bo` ("": any) and for the process `pid` (0: any)."""

    __slots__ = ("_count", "_random", "bo", "interval", "name", "pid", "probability", "space", "struck", "times")

    def __init__(self, name: str = "", struck: Callable[[str, str], None] | None = None) -> None:
        self.name = name
        self.struck = struck
        """Told of each failure: the place and the BO's name."""
        self.bo = ""
        self.pid = 0
        self.probability = 0
        self.interval = 1
        self.times = 1
        self.space = 0
        self._count = 0
        self._random = random.Random(0)

    def should_fail(self, size: int = 1, *, bo: str = "") -> bool:
        """Ask once, for `size` units of work for the BO of that name."""
        if not self.probability or not self.times:
            return False
        if (self.bo and bo != self.bo) or (self.pid and ASKER.get() != self.pid):
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
        if self.struck is not None:
            self.struck(self.name, bo)
        return True

    def set(self, key: str, text: str) -> None:
        """Set one of KEYS from text. TtmError(EINVAL)."""
        if key == "bo":
            self._aim(text.removesuffix("\n"))
            return
        text = text.strip()
        if key == "pid" and text != "0" and self.name in KNOW_NO_PID:
            raise TtmError(errno.EINVAL, f"fail_{self.name} is reached by the device, for no process: say 0")
        low, high = _BOUNDS[key]
        digits = text[1:] if text.startswith("-") else text
        if not (digits.isascii() and digits.isdecimal() and len(digits) < 20 and low <= int(text) <= high):
            raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say a number from {low} to {high}")
        setattr(self, key, int(text))
        if key == "interval":
            self._count = 0

    def _aim(self, bo: str) -> None:
        if bo and self.name in KNOW_NO_BO:
            raise TtmError(errno.EINVAL, f"fail_{self.name} is reached for no BO: aim it at a pid")
        self.bo = bo


class Injection:
    """All places of one device, as attributes: `injection["engine"].should_fail()`."""

    def __init__(self, struck: Callable[[str, str], None] | None = None) -> None:
        """`struck` is told of each failure: the place and the BO's name."""
        self._places = {name: FaultAttr(name, struck) for name in PLACES}
        self.ban_memcpy = False
        """The CPU may not copy for an engine that failed."""
        self.ban_exchange = False
        """Frames may not change hands at the end of a move: all of its bytes are copied."""

    def __getitem__(self, name: str) -> FaultAttr:
        return self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def check(self, name: str, error: int, what: str, size: int = 1, *, bo: str = "") -> None:
        """Raise TtmError(error) when the place is to fail, for `size` units of work (pages, where it is about them)."""
        if self._places[name].should_fail(size, bo=bo):
            raise TtmError(error, f"{what} failed (injected by debug/fail_{name})")
