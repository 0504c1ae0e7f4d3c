"""Locking for calls: one BO, many BOs under a ticket, and again when what they need is held by somebody.

Where the kernel reports ENOMEM although there is room to be made, because victims are reserved at the moment, the call
gives up all it holds, waits for that, and starts over with its ticket's age (ttmfs.ttm.contention).

A BO may be unlinked while a call waits for it, or before it came: then the call is ENOENT, and gives nothing to a BO
that nobody would take it back from.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from ttmfs.sync.breather import Breather
from ttmfs.sync.exec import Exec
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.contention import NoRoom
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.shared import put_off
from ttmfs.ttm.turn import Turn

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
    bo.device.inject.check("interrupt", errno.EINTR, f"waiting for {bo.name!r}", bo=bo.name)
    await bo.resv.lock()
    try:
        yield
    finally:
        bo.unreserve()


@asynccontextmanager
async def reserved_all(
    bos: Sequence[BufferObject],
    stamp: int | None = None,
    unlock: Callable[[BufferObject], None] = BufferObject.unreserve,
) -> AsyncIterator[Exec[BufferObject]]:
    """All of `bos` under one ww ticket (drm_exec), fences' slots included; a BO named twice is locked once.

    TtmError(ENOENT) when one of them is gone.

    `stamp` is the age of an earlier ticket of the same call, `unlock` what ends each reservation.
    """
    async with Exec[BufferObject](ignore_duplicates=True, unlock=unlock, stamp=stamp) as execution:
        breather = Breather()
        async for attempt in execution.until_all_locked():
            with attempt:
                for bo in bos:
                    bo.device.inject.check("interrupt", errno.EINTR, f"waiting for {bo.name!r}", bo=bo.name)
                    await execution.prepare(bo, 1)
                    await breather.step()
                for bo in bos:  # all of them once more: it may have gone while another was waited for
                    bo.check_alive()
        for bo in bos:
            put_off(bo)  # one that shares its reservation with another of them is not unlocked by itself
        yield execution


async def with_all_reserved(
    bos: Sequence[BufferObject],
    ctx: OperationContext,
    work: Callable[[], Awaitable[T]],
    unlock: Callable[[BufferObject], None] = BufferObject.unreserve,
) -> T:
    """Run `work` with all of `bos` reserved under one ticket, again while it finds no room for the moment's reasons.

    `work` leaves everything as it was when it fails. Raises what it raises; NoRoom only where waiting is of no use, or
    not wanted (`ctx.no_wait_gpu`). The caller bounds it.
    """
    with Turn(bos[0].device, bos[0].name) as turn:
        while True:
            ctx.done.contended = None
            try:
                async with reserved_all(bos, turn.stamp, unlock) as execution:
                    ctx.ticket = execution.ticket
                    turn.stamp = execution.ticket.stamp
                    return await work()
            except NoRoom as error:
                if error.contended is None or ctx.no_wait_gpu:
                    raise
                contended = error.contended
            await turn.wait(contended)
