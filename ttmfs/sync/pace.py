"""Pace: how a long piece of work on the loop lets others run, every millisecond."""

from typing import Final

import trio

from ttmfs import clock

INTERVAL: Final = 0.001
"""Seconds of work between two checkpoints."""


class Pace:
    """`await step()` between two pieces of work; most calls return at once."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = clock.monotonic() + INTERVAL

    async def step(self) -> None:
        """A checkpoint if the last one was long enough ago."""
        if clock.monotonic() >= self._next:
            await trio.lowlevel.checkpoint()
            self._next = clock.monotonic() + INTERVAL
