"""BOs whose pages are scattered, and what is asked of them, for the tests of defrag."""

import random

import numpy as np

from ttmfs.driver import calls
from ttmfs.driver.defrag import defrag_bo
from ttmfs.ttm import access
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20
PIECE = 512


def hog(vdev, keep=()):
    """Take all free pages one by one and free every second: no block of order 1 is left. Returns the others."""
    pool = vdev.pool
    count = pool.free_pages + pool.reserve_pages
    got = pool.alloc(count, max_order=0, zero=False, use_reserve=True).pages
    pool.free(got[::2], to_pool=False)
    return np.setdiff1d(got[1::2], np.asarray(keep, np.uint32))


async def scattered(vdev, name, size, place=None, seed=1):
    """A BO of random bytes whose pages are all single; the arena is as before otherwise. (bo, data)"""
    others = hog(vdev)
    bo = vdev.create_bo(name)
    data = random.Random(seed).randbytes(size)
    await access.write(bo, 0, data)
    vdev.pool.free(others, to_pool=False)
    if place:
        await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), OperationContext())
    return bo, data


def orders(bo):
    return bo.tt.page_orders() if bo.tt is not None else {}


def pages_of_bo(bo):
    return bo.tt.pages_at(bo.tt.present())


def entries_of(bo):
    """The page vector as it is now."""
    return bo.tt.entries(0, bo.tt.num_pages).copy()


async def content(bo):
    return bytes(await access.read(bo, 0, bo.size))


async def defrag(vdev, bo, **ctx):
    return await defrag_bo(vdev, bo, OperationContext(**ctx))
