"""ttm_bo_unmap_virtual: make every cache give up its pages of a BO, without a deadlock.

Rules R1 and R3: while an INVAL is outstanding the BO's own requests are served from where the bytes are, and INVAL is
skipped when no READ or WRITE was answered since the last one.
"""

from collections.abc import Sequence

import trio

from ttmfs import clock
from ttmfs.observe import points
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import Gated
from ttmfs.ttm.gate import ALL_PAGES


async def unmap_virtual(
    bo: BufferObject, first_page: int = 0, num_pages: int = 0, *, together: Sequence[Gated] = ()
) -> None:
    """Drop cached pages [first_page, first_page + num_pages), or from `first_page` to the end when `num_pages` is 0.

    Dirty ones are written back first; with the whole BO goes the I/O mapping that its driver gave it. On return the
    caller may close the gate in the same step. Never cancelled half way, never raises. `together` are BOs that the
    caller holds reserved besides: until the INVAL has returned they are served like `bo`, because their reservations
    wait for it too.
    """
    whole = not first_page and not num_pages
    if not bo.handed_out and not bo.unmapping:
        # While another INVAL is outstanding its writeback may still be on the way: wait for it, by one more.
        if whole:
            bo.device.io_mem.free(bo.resource)
        return
    if whole:
        # A READ that is answered from here on sets it again: its page may be cached behind the walk.
        bo.handed_out = bo.eof_page_read = False
    device = bo.device
    device.counters.moves.unmaps += 1
    started = clock.monotonic_ns() if device.trace.on else 0
    pages = range(first_page, first_page + num_pages) if num_pages else range(first_page, ALL_PAGES.stop)
    gates = {bo.gate: pages, **{other.gate: ALL_PAGES for other in together if other is not bo}}
    for gate, unmapped in gates.items():
        gate.begin_unmapping(unmapped)
    try:
        with trio.CancelScope(shield=True):
            await device.unmapper.invalidate(bo, first_page, num_pages)
    finally:
        for gate, unmapped in gates.items():
            gate.end_unmapping(unmapped)
        if whole:
            device.io_mem.free(bo.resource)
    if started:
        unmap_us = (clock.monotonic_ns() - started) // 1000
        points.unmap(device.trace, bo, first=first_page, pages=num_pages, unmap_us=unmap_us)
