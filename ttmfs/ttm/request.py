"""Request: a READ or WRITE that may have to wait, and how one of a BO is run: shielded, timed, listed and traced.

Rule R8: where the kernel lets few requests wait at a time, the oldest is hurried when there are too many. A request
never spins: what is tried again without having waited is tried less and less often.
"""

from collections.abc import Awaitable, Callable, Sized
from functools import partial
from typing import TypeVar

import trio

from ttmfs import clock
from ttmfs.errors import TtmError
from ttmfs.observe import points
from ttmfs.sync.attempts import Attempts
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.funcs import Protection, VmFault
from ttmfs.ttm.gate import Gate
from ttmfs.ttm.turn import Turn
from ttmfs.units import PAGE_MASK, PAGE_SHIFT


class Waiting:
    """A READ or WRITE of a BO or an address space that may wait, until `deadline` on trio's clock; `expires` is when it
    may be failed for that. `gate` is where it waits."""

    __slots__ = ("deadline", "expires", "gate", "hurried")

    def __init__(self, gate: Gate, seconds: float) -> None:
        self.gate = gate
        self.deadline = self.expires = trio.current_time() + seconds
        self.hurried = False

    @property
    def late(self) -> bool:
        """Its time is up: it is served from where the bytes are, or fails."""
        return trio.current_time() >= self.deadline

    @property
    def time_left(self) -> float:
        """Seconds, never negative."""
        return max(0.0, self.deadline - trio.current_time())

    @property
    def expired(self) -> bool:
        """The fault timeout is over: it may fail for that. A request that was only hurried may not."""
        return trio.current_time() >= self.expires

    @property
    def time_to_live(self) -> float:
        """Seconds until it is expired, never negative."""
        return max(0.0, self.expires - trio.current_time())

    def hurry(self) -> None:
        """End its wait now, as far as its bytes can be had without: moving ones are waited for all the same (R4)."""
        self.hurried = True
        self.deadline = trio.current_time()
        self.gate.wake()

    @property
    def only_hurried(self) -> bool:
        """It waits no more, but has time left."""
        return self.deadline < self.expires

    def wait_on(self) -> None:
        """It was hurried in vain."""
        self.deadline = self.expires


def list_waiting(device: Device, request: Waiting, started: int) -> None:
    """It is among the waiting ones from now on, since `started` (monotonic ns); the caller takes it off (R8).

    A mount has so many tasks, and the kernel grants an unprivileged one few requests at a time: too many that wait
    would stop all others, so the oldest that was not hurried yet is.
    """
    parked = device.counters.requests.parked
    parked[request] = started
    if len(parked) > device.max_parked:
        oldest = next((one for one in parked if not one.hurried), None)
        if oldest is not None:
            oldest.hurry()


class Request(Waiting):
    """A READ or WRITE (`op`) of a BO that may wait. Beside that, for the trace: what it waited for, how often it met a
    reserved BO, pages it got besides, the prot of the handler."""

    __slots__ = ("attempts", "bo", "op", "prefaulted", "prot", "retries", "turn", "waits")

    def __init__(self, bo: BufferObject, op: str = "read") -> None:
        super().__init__(bo.gate, bo.device.fault_timeout)
        self.bo = bo
        self.op = op
        self.turn = Turn(bo.device, bo.name)
        self.attempts = Attempts()
        self.waits: tuple[str, ...] = ()
        self.retries = self.prefaulted = 0
        self.prot = Protection.NONE

    def note(self, vmf: VmFault) -> None:
        """What an attempt came to."""
        self.waits += vmf.waits
        self.retries += vmf.waits.count("reservation")
        self.prefaulted += vmf.prefaulted
        self.prot = vmf.prot or self.prot

    async def again(self, begun: float, first: int, count: int) -> None:
        """Before the next attempt; the last one began at `begun` on trio's clock.

        What says "again" without having waited (the driver's EBUSY, an interrupt) is asked less and less often: a
        request never spins. An INVAL of its pages ends the pause.
        """
        await trio.lowlevel.checkpoint()
        pause = self.attempts.pause(begun)
        if pause:
            await self.bo.gate.park(partial(trio.sleep, pause), pause, first, count)


def trace_fault(bo: BufferObject, offset: int, size: int, started: int, request: Request | None = None) -> None:
    """Event `fault`: a READ of `size` bytes, or a WRITE that had to wait, was answered. `started` is monotonic ns."""
    now = clock.monotonic_ns()
    points.fault(
        bo.device.trace,
        bo,
        now,
        op="read" if request is None else request.op,
        offset=offset,
        pages=((offset + size + PAGE_MASK) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) if size else 0,
        prefault=0 if request is None else request.prefaulted,
        retries=0 if request is None else request.retries,
        waits=() if request is None else request.waits,
        prot="-" if request is None else request.prot.word,
        latency_us=(now - started) // 1000,
    )


_A = TypeVar("_A")
_R = TypeVar("_R")


async def parked(
    bo: BufferObject, serve: Callable[[BufferObject, int, _A, Request], Awaitable[_R]], offset: int, argument: _A
) -> _R:
    """Run a request that may have to wait: shielded, timed and listed among the waiting ones (R8, R9)."""
    counters = bo.device.counters
    started = clock.monotonic_ns()
    request = Request(bo, "read" if isinstance(argument, int) else "write")
    list_waiting(bo.device, request, started)
    try:
        with trio.CancelScope(shield=True), request.turn:
            result = await serve(bo, offset, argument, request)
        if bo.device.trace.faults:
            bytes_of = argument if result is None else result
            size = len(bytes_of) if isinstance(bytes_of, Sized) else 0
            trace_fault(bo, offset, size, started, request)
        return result
    except TtmError as error:
        counters.faults.errors += 1
        bo.last_error = error.message
        raise
    finally:
        del counters.requests.parked[request]
        elapsed = clock.monotonic_ns() - started
        counters.faults.max_ns = max(counters.faults.max_ns, elapsed)
        counters.fault_seconds.observe(elapsed / 1e9)
