"""Attempts: what is tried again without having waited for anything is tried less and less often: nobody spins."""

from typing import Final

import trio

_NO_TIME: Final = 0.0005
"""Seconds: an attempt that takes less has waited for nothing."""
_FREE: Final = 4
_LONGEST: Final = 0.05


class Attempts:
    """The attempts of one call or request; those that followed each other at once are counted."""

    __slots__ = ("_idle",)

    def __init__(self) -> None:
        self._idle = 0

    def pause(self, begun: float) -> float:
        """Seconds to sleep before the next attempt, mostly 0; the last one began at `begun` on trio's clock."""
        if trio.current_time() - begun > _NO_TIME:
            self._idle = 0
            return 0.0
        self._idle += 1
        if self._idle <= _FREE:
            return 0.0
        return float(min(_NO_TIME * 2.0 ** min(self._idle - _FREE, 10), _LONGEST))
