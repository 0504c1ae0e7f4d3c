"""Bell: wakes the one task that works off what others have noted down.

A ring is kept until it is heard, so none is lost while the listener works, and many rings are heard as one. For
"something has changed, look again", which any number of tasks wait for and nobody needs to hear later, there is
`trio.lowlevel.ParkingLot`.
"""

import trio


class Bell:
    """Of one listener. `ring` and `hush` are called on the loop, and may be called without one."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """There is something to do."""
        self._rung.set()

    async def heard(self) -> None:
        """Wait until it was rung since this last returned; cancelled, the ring is kept."""
        await self._rung.wait()
        self.hush()

    def hush(self) -> None:
        """What it was rung for so far is being done."""
        if self._rung.is_set():
            self._rung = trio.Event()
