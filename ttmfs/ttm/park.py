"""Park: a request's wait on its BO, timed and traced. The wait itself is the gate's (`Gate.park`)."""

from collections.abc import Awaitable, Callable

from ttmfs import clock
from ttmfs.observe import points
from ttmfs.observe.recorder import SLOW_WAIT
from ttmfs.ttm.bo import BufferObject


async def park(
    bo: BufferObject, why: str, wait: Callable[[], Awaitable[object]], timeout: float, first: int, count: int
) -> bool:
    """Run `wait` for at most `timeout` seconds as `Gate.park` does; False when an unmap or the timeout ended it early.

    The request is for `count` pages from `first` on. `why` is one word for the trace: reservation, move, clear, copy.
    """
    if bo.gate.unmaps(first, count):
        return False
    started = clock.monotonic_ns()
    done = await bo.gate.park(wait, timeout, first, count)
    waited = clock.monotonic_ns() - started
    device = bo.device
    device.counters.gate_seconds.observe(waited / 1e9)
    if waited > SLOW_WAIT * 1e9:
        ended = "" if done else ", until an unmap or its time ended that"
        device.recorder.note("wait", bo.name, f"{bo.name!r} was waited for: {why}, {waited // 1_000_000} ms{ended}")
    points.gate_wait(device.trace, bo, why=why, wait_us=waited // 1000, done=done)
    return done
