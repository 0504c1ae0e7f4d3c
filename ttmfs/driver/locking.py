"""Locking for calls: one BO, many BOs under a ticket, and again when an eviction met an older ticket.

A walk that would have to wait for a victim which an older ticket holds gets EDEADLK. The kernel then reports ENOMEM
although there is room to be made. Here the call gives up all it holds, waits for that victim as the ww rules ask
(`lock_slow`), and starts over with its ticket's age, so that it becomes the oldest some day.

A BO may be unlinked while a call waits for it, or before it came: then the call is ENOENT, and gives nothing to a BO
that nobody would take it back from.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from ttmfs.errors import TtmError
from ttmfs.sync.exec import Exec
from ttmfs.sync.resv import AcquireContext
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import Contended, OperationContext

ATTEMPTS: Final = 64
"""How often a call starts over before it fails for want of room."""

_FULL: Final = (errno.ENOMEM, errno.ENOSPC)
T = TypeVar("T")


@asynccontextmanager
async def reserved(bo: BufferObject) -> AsyncIterator[None]:
    """ttm_bo_reserve … ttm_bo_unreserve around a block. TtmError(ENOENT) when the BO is gone."""
    async with reserved_dead_or_alive(bo):
        bo.check_alive()
        yield


@asynccontextmanager
async def reserved_dead_or_alive(bo: BufferObject) -> AsyncIterator[None]:
    """The same for who empties a region of zombies too."""
    bo.device.inject.check("interrupt", errno.EINTR, f"waiting for {bo.name}")
    await bo.resv.lock()
    try:
        yield
    finally:
        bo.unreserve()


@asynccontextmanager
async def reserved_all(bos: Sequence[BufferObject], stamp: int | None = None) -> AsyncIterator[Exec[BufferObject]]:
    """All of `bos` under one ww ticket (drm_exec), fences' slots included; a BO named twice is locked once.

    TtmError(ENOENT) when one of them is gone.

    `stamp` is the age of an earlier ticket of the same call.
    """
    async with Exec[BufferObject](ignore_duplicates=True, unlock=BufferObject.unreserve, stamp=stamp) as execution:
        async for attempt in execution.until_all_locked():
            with attempt:
                for bo in bos:
                    bo.device.inject.check("interrupt", errno.EINTR, f"waiting for {bo.name}")
                    await execution.prepare(bo, 1)
                for bo in bos:  # all of them once more: it may have gone while another was waited for
                    bo.check_alive()
        yield execution


async def with_all_reserved(
    bos: Sequence[BufferObject], ctx: OperationContext, work: Callable[[], Awaitable[T]]
) -> T:
    """Run `work` with all of `bos` reserved under one ticket, again when it failed because of an older ticket.

    `work` leaves everything as it was when it fails. Raises what it raises.
    """
    stamp: int | None = None
    for attempt in range(ATTEMPTS):
        ctx.contended = None
        try:
            async with reserved_all(bos, stamp) as execution:
                stamp = execution.ticket.stamp
                return await work()
        except TtmError as error:
            victim = ctx.contended
            if victim is None or error.errno not in _FULL or attempt == ATTEMPTS - 1:
                raise
        assert stamp is not None
        await _wait_for(victim, stamp)
    raise AssertionError("the last attempt returns or raises")


async def _wait_for(victim: Contended, stamp: int) -> None:
    """Queue for the contended reservation, holding nothing, and let it go again."""
    ticket = AcquireContext()
    ticket.stamp = stamp
    await victim.resv.lock_slow(ticket)
    victim.unlock()
    ticket.fini()
