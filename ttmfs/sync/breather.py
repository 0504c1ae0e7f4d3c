"""Breather: how long pieces of work on the loop let others run, every millisecond, and one after another.

Each piece of work pauses after a millisecond. If all that have paused went on in the same turn of the loop, sixty of
them would hold up a request for sixty milliseconds; so one of them goes on in each turn, in the order in which they
paused, however many there are. A request therefore waits for one such millisecond.
"""

from typing import Final

import trio

from ttmfs import clock

INTERVAL: Final = 0.001
"""Seconds of work between two pauses."""


class Breather:
    """`await step()` between two small pieces of work; most calls return at once.

    Work that may come many times over at once (commands of clients) begins with a `queue=True`: its first step waits
    its turn too, if others are at work.
    """

    __slots__ = ("_next", "_turns")

    def __init__(self, *, queue: bool = False) -> None:
        self._turns = _turns()
        self._next = 0.0 if queue and self._turns.busy else clock.monotonic() + INTERVAL

    async def step(self) -> None:
        """Pause if the last pause was long enough ago, until it is this work's turn again."""
        if clock.monotonic() >= self._next:
            await self._turns.next()
            self._next = clock.monotonic() + INTERVAL


class Pauses:
    """`await step()` as of a Breather, for the few tasks that are the device's own: they wait for nobody's turn."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    async def step(self) -> None:
        """Let others run if the last time was long enough ago."""
        if clock.monotonic() >= self._next:
            await trio.lowlevel.checkpoint()
            self._next = clock.monotonic() + INTERVAL


class _Turns:
    """Who has paused, in order; while there is anybody, a task lets one of them go on in each turn of the loop."""

    __slots__ = ("_paused", "busy")

    def __init__(self) -> None:
        self._paused = trio.lowlevel.ParkingLot()
        self.busy = False
        """Work has paused since the last turn in which nobody had."""

    async def next(self) -> None:
        """Pause. Cancellation ends the pause at once."""
        if not self.busy:
            self.busy = True
            trio.lowlevel.spawn_system_task(self._give_turns)
        await self._paused.park()

    async def _give_turns(self) -> None:
        try:
            while True:
                # Once for the turn in which they pause, once for the one in which the last of them works.
                await trio.lowlevel.checkpoint()
                if not self._paused.unpark() and not self._paused:
                    await trio.lowlevel.checkpoint()
                    if not self._paused:
                        return
        finally:
            self.busy = False


_run_turns: trio.lowlevel.RunVar[_Turns] = trio.lowlevel.RunVar("ttmfs turns")


def _turns() -> _Turns:
    try:
        return _run_turns.get()
    except LookupError:
        turns = _Turns()
        _run_turns.set(turns)
        return turns
