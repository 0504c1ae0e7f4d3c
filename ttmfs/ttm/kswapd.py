"""kswapd: who makes room before it is needed, and keeps the swap store tidy, so that a faulting client seldom pays.

`watermark` wakes when populated pages come within a gap of the limit and shrinks until twice the gap is free. `upkeep`
gives the store's dropped slots back to the host and lets a store that writes behind do so.
"""

from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.sync.bell import Bell
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.shrinker import shrink, store_has_room
from ttmfs.ttm.store_io import do_upkeep

BACKOFF: Final = 0.25
"""Seconds of rest when nothing could be had."""


async def watermark(device: Device) -> None:
    """Shrink ahead of need; runs until cancelled."""
    while True:
        await device.pressure.heard()
        while (over := device.over_limit(2 * device.pages_gap)) > 0:
            if not store_has_room(device) and not device.purgeable_bos:
                break
            try:
                shrunk = (await shrink(device, over, OperationContext(no_wait_gpu=True))).pages
            except TtmError:  # of the store, say
                shrunk = 0
            if not shrunk:
                await trio.sleep(BACKOFF)
                break
            await trio.lowlevel.checkpoint()


async def upkeep(device: Device) -> None:
    """Do what the store wants done whenever it says so; runs until cancelled."""
    store = device.swap_store
    if store is None:
        return
    wanted = Bell()
    store.wake = wanted.ring
    try:
        while True:
            await wanted.heard()
            await trio.sleep(store.warm_seconds)
            wanted.hush()
            try:
                await do_upkeep(store)
            except TtmError:  # no thread is to be had for it
                await trio.sleep(BACKOFF)
                wanted.ring()
    finally:
        store.wake = None
