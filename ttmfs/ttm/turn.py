"""Turn: a call that starts over, keeping its age, until it has room or finds that there is none to be had."""

from types import TracebackType
from typing import Self

import trio

from ttmfs import clock
from ttmfs.observe import points
from ttmfs.sync.attempts import Attempts
from ttmfs.sync.ww_mutex import AcquireContext
from ttmfs.ttm.contention import Contended
from ttmfs.ttm.device import Device


class Turn:
    """One call, or one request, on behalf of the BO `name`; a context manager around all its attempts.

    See ttmfs.ttm.contention. The first attempt of who locks one BO needs no ticket; all later ones have the same age.
    """

    __slots__ = ("_attempts", "_device", "_name", "stamp")

    def __init__(self, device: Device, name: str) -> None:
        self._device = device
        self._name = name
        self._attempts = Attempts()
        self.stamp: int | None = None
        """Its age; None before it has met anybody."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end_claims()

    def ticket(self) -> AcquireContext | None:
        """A ticket for the next attempt; None for the first."""
        if self.stamp is None:
            return None
        ticket = AcquireContext()
        ticket.stamp = self.stamp
        return ticket

    def need_ticket(self) -> AcquireContext:
        """A ticket for the next attempt, also for the first."""
        ticket = self.ticket() or AcquireContext()
        self.stamp = ticket.stamp
        return ticket

    async def wait(self, contended: Contended) -> None:
        """For what the last attempt met; the caller holds nothing."""
        stamp = self.need_ticket().stamp
        started, begun = clock.monotonic_ns(), trio.current_time()
        await contended.wait(stamp)
        await trio.sleep(self._attempts.pause(begun))
        wait_us = (clock.monotonic_ns() - started) // 1000
        points.space_wait(self._device.trace, self._name, why=contended.why, wait_us=wait_us)

    def end_claims(self) -> None:
        """It has its space, or needs none any more."""
        if self.stamp is None:
            return
        for manager in self._device.managers.values():
            manager.claims.end(self.stamp)
