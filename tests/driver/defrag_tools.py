"""BOs whose pages are scattered, and what is asked of them, for the tests of defrag."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from ttmfs.driver import calls
from ttmfs.driver.calls import Result
from ttmfs.driver.defrag import defrag_bo
from ttmfs.driver.device import VirtualDevice
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20
PIECE = 512


def hog(vdev: VirtualDevice, keep: Sequence[int] | np.ndarray = ()) -> np.ndarray:
    """Take all free pages one by one and free every second: no block of order 1 is left. Returns the others."""
    pool = vdev.pool
    count = pool.free_pages + pool.reserve_pages
    got = pool.alloc(count, max_order=0, zero=False, use_reserve=True).pages
    pool.free(got[::2], to_pool=False)
    return np.setdiff1d(got[1::2], np.asarray(keep, np.uint32))


async def scattered(
    vdev: VirtualDevice, name: str, size: int, place: str = "", seed: int = 1
) -> tuple[BufferObject, bytes]:
    """A BO of random bytes whose pages are all single; the arena is as before otherwise. (bo, data)"""
    others = hog(vdev)
    bo = vdev.create_bo(name)
    data = random.Random(seed).randbytes(size)
    await access.write(bo, 0, data)
    vdev.pool.free(others, to_pool=False)
    if place:
        await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), OperationContext())
    return bo, data


def orders(bo: BufferObject) -> dict[int, int]:
    return bo.tt.page_orders() if bo.tt is not None else {}


def pages_of_bo(bo: BufferObject) -> np.ndarray:
    assert bo.tt is not None
    return bo.tt.pages_at(bo.tt.present())


def entries_of(bo: BufferObject) -> np.ndarray:
    """The page vector as it is now."""
    assert bo.tt is not None
    return bo.tt.entries(0, bo.tt.num_pages).copy()


async def content(bo: BufferObject) -> bytes:
    return bytes(await access.read(bo, 0, bo.size))


async def defrag(vdev: VirtualDevice, bo: BufferObject, **ctx: Any) -> Result:
    return await defrag_bo(vdev, bo, OperationContext(**ctx))
