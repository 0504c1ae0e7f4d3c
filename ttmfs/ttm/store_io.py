"""Transfers between a device's memory and its swap store, step by step, on the loop or in threads.

Backup and restore decide what goes and when; how the bytes get there is here.
"""

import errno
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.errors import TtmError
from ttmfs.memory.arena import FRAME_PAGES, Arena
from ttmfs.memory.stores import LoadTransfer, SwapStore
from ttmfs.sync.offload import Lane
from ttmfs.ttm.device import Device
from ttmfs.ttm.holdings import Load
from ttmfs.ttm.page_vector import Index, Vector
from ttmfs.ttm.tt import TT

SHORT_STEP_PAGES: Final = FRAME_PAGES
"""2 MiB: what a store may take over as it is."""
LONG_STEP_PAGES: Final = 8 * FRAME_PAGES
"""16 MiB: to enter so many pages in the books takes some tenths of a millisecond."""
_LANES: Final = 2
"""Steps of one backup or restore that are under way at once, in threads."""
_T = TypeVar("_T")
_STORE: Final = Lane("store", 4)


async def store_pages(
    device: Device,
    arena: Arena,
    pages: Vector,
    *,
    bo: str,
    writeback: bool = False,
    unchanged: Callable[[], NDArray[np.bool_]] | None = None,
) -> Vector:
    """One step of the BO `bo` to the store: handles (uint32) of as many of `pages`, from the first on, as find room.

    With `unchanged` the pages that are stored are the store's to take (`SwapStore.begin_store(gives=)`), and must be
    freed in the same step; it is asked last which of them, bool per page, are still what was stored. The handles of
    the others, and perhaps of some neighbours, are 0.

    TtmError: ENOSPC when not one could be stored, otherwise the medium's error. Nothing is stored when cancelled.
    """
    store = device.swap_store
    assert store is not None
    fault = device.inject["store_write"]
    store.fail_write = (lambda _number: errno.ENOSPC if fault.should_fail(bo=bo) else 0) if fault.probability else None
    transfer = store.begin_store(len(pages), gives=unchanged is not None)
    try:
        if store.blocking:
            await _STORE.run(store.write, transfer, arena, pages, writeback)
        else:
            await _on_the_loop(store.write_steps(transfer, arena, pages))
    except BaseException:
        store.cancel_store(transfer)
        raise
    return store.end_store(transfer, unchanged() if unchanged is not None else None)


async def load_pages(
    device: Device, tt: TT, index: Index, pages: Vector, *, bo: str
) -> tuple[NDArray[np.bool_], TtmError | None]:
    """One step of the BO `bo` back from the store, as `TT.end_load` says."""
    load = _begin_load(device, tt, index, bo, takes=True)
    try:
        await _read(load, tt, tt.arena, pages)
    except BaseException:
        # Cancelled, perhaps half way. The caller hears of nothing that has come, so nothing has: the pages are its own.
        load.transfer.error, load.transfer.loaded = TtmError(errno.EINTR, "interrupted"), 0
        tt.end_load(load, pages)
        raise
    return tt.end_load(load, pages)


async def look_pages(device: Device, tt: TT, index: Index, arena: Arena, pages: Vector, *, bo: str) -> None:
    """What the BO `bo`, which is reserved, has in the store at `index`, into `pages` of `arena`; it stays there too.

    TtmError with what the store says.
    """
    load = _begin_load(device, tt, index, bo, takes=False)
    try:
        await _read(load, tt, arena, pages)
    except BaseException:
        load.transfer.error = None
        tt.end_look(load)
        raise
    tt.end_look(load)


def _begin_load(device: Device, tt: TT, index: Index, bo: str, *, takes: bool) -> Load:
    inject_reads(device, bo)
    return tt.begin_load(index, takes=takes)


def inject_reads(device: Device, bo: str) -> None:
    """The next load that begins is of this BO: it meets what debug/fail_store_read says."""
    fault = device.inject["store_read"]
    assert device.swap_store is not None
    device.swap_store.fail_read = (lambda _number: fault.should_fail(bo=bo)) if fault.probability else None


async def _read(load: Load, tt: TT, arena: Arena, pages: Vector) -> None:
    assert tt.store is not None
    await read_pages(tt.store, load.transfer, arena, pages)


async def read_pages(store: SwapStore, transfer: LoadTransfer, arena: Arena, pages: Vector) -> None:
    """The middle part of a load, in a thread or step by step. Raises nothing but Cancelled; nothing runs on then."""
    if store.blocking:
        await _STORE.run(store.read, transfer, arena, pages)
    else:
        await _on_the_loop(store.read_steps(transfer, arena, pages))


async def _on_the_loop(steps: Iterator[None]) -> None:
    """Each by itself, and apart from the books before and after them: somebody may wait for his turn."""
    await trio.lowlevel.checkpoint()
    for _ in steps:
        await trio.lowlevel.checkpoint()


class StoreSteps:
    """How many pages of a backup or restore the next step takes: `pages`.

    The more, the less the books of each cost; but who asks for something meanwhile waits for these. So steps are
    short while there are requests, and double when there were none during the last.
    """

    __slots__ = ("_device", "_served", "_store", "pages")

    def __init__(self, device: Device, store: SwapStore) -> None:
        self._device = device
        self._store = store
        self._served = self._requests()
        self.pages = SHORT_STEP_PAGES

    def _requests(self) -> int:
        requests = self._device.counters.requests
        return requests.read + requests.write

    def after_step(self) -> None:
        """A step is done."""
        served = self._requests()
        self.pages = min(2 * self.pages, LONG_STEP_PAGES) if served == self._served else SHORT_STEP_PAGES
        self._served = served

    def next_to(self, begun: int) -> int:
        """Pages of the next step behind `begun` pages: to the next multiple, so that blocks are not cut."""
        return self.pages - begun % self.pages

    def for_all_lanes(self, begun: int, most: int) -> int:
        """As `next_to`, for steps that keep all lanes busy for a while, but at most `most` pages; perhaps 0."""
        pages = self.pages * (2 * _LANES if self._store.blocking else 1)
        while pages > most:
            pages //= 2
        return pages - begun % pages if pages else 0


async def in_lanes(store: SwapStore, steps: Iterator[_T], do: Callable[[_T], Awaitable[bool]]) -> None:
    """`do` for each of the steps, a few at once where threads do the work, until it has answered False.

    What is under way then is finished; no further step is taken.
    """
    go_on = True

    async def lane() -> None:
        nonlocal go_on
        while go_on and (step := next(steps, None)) is not None:
            go_on &= await do(step)

    if not store.blocking:
        await lane()
        return
    async with trio.open_nursery() as nursery:
        for _ in range(_LANES):
            nursery.start_soon(lane)


async def flush_store(device: Device) -> None:
    """All that is stored is on the medium when this returns. TtmError with the medium's error."""
    store = device.swap_store
    if store is not None:
        await do_upkeep(store, flush=True)
        await _STORE.run(store.sync)


async def do_upkeep(store: SwapStore, *, flush: bool = False) -> None:
    """All that the store wants done, in threads. TtmError with the medium's error when it is to flush."""
    while (work := store.begin_upkeep(flush)) is not None:
        try:
            await _STORE.run(store.run_upkeep, work)
        finally:
            store.end_upkeep(work)
        await trio.lowlevel.checkpoint()
