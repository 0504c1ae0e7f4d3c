"""What the core tests share: a running device without a mount, BOs with content, unmappers that wait."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from ttmfs.driver import calls
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

MIB = 1 << 20
PAGE = 4096


@asynccontextmanager
async def device(**options: Any) -> AsyncIterator[VirtualDevice]:
    """A device whose engines run. Small unless told otherwise; checked at the end."""
    config = {"vram": 4 * MIB, "gtt": 16 * MIB, "memory": 64 * MIB, "swap": 64 * MIB, **options}
    vdev = VirtualDevice(Config(**config))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vdev.run)
            yield vdev
            wrong = vdev.selfcheck()
            nursery.cancel_scope.cancel()
        assert not wrong, wrong
    finally:
        vdev.close()


@functools.cache
def pattern(name: str, size: int) -> bytes:
    """Bytes that differ from page to page and from BO to BO."""
    seed = sum(name.encode()) & 0xFF
    return b"".join(bytes([(seed + page) & 0xFF, page & 0xFF]) * (PAGE // 2) for page in range(-(-size // PAGE)))[:size]


async def make(vdev: VirtualDevice, name: str, size: int = MIB, *, place: str = "") -> BufferObject:
    """A BO full of `pattern`, moved to `place`."""
    bo = vdev.create_bo(name)
    if size:
        await access.write(bo, 0, pattern(name, size))
    if place:
        await move(vdev, bo, place)
    return bo


async def move(vdev: VirtualDevice, bo: BufferObject, place: str, **options: Any) -> dict[str, Any]:
    """validate; returns the result of the call."""
    ctx = OperationContext(**options)
    return await calls.validate_bo(vdev, bo, vdev.parse_placement(place.split()), ctx)


async def outcome(call: Callable[[], Awaitable[object]]) -> int:
    """The errno that a call fails with, 0 for none."""
    try:
        await call()
    except TtmError as error:
        return error.errno or -1
    return 0


def fails(code: int) -> "pytest.RaisesExc[TtmError]":
    """What is done in it raises a TtmError with this errno."""
    return pytest.raises(TtmError, check=lambda error: error.errno == code)


async def idle(*bos: BufferObject) -> None:
    """Until nothing works on them."""
    for bo in bos:
        await bo.resv.wait(Usage.BOOKKEEP)


async def check(bo: BufferObject, name: str | None = None) -> None:
    """Every byte is what `make` wrote."""
    got = bytes(await access.read(bo, 0, bo.size))
    assert got == pattern(bo.name if name is None else name, bo.size), f"{bo.name}: wrong bytes"


class WaitingUnmapper:
    """INVALs that really wait; `hook(bo)` runs in the middle of each."""

    def __init__(self, checkpoints: int = 2) -> None:
        self.checkpoints = checkpoints
        self.unmapped: list[str] = []

    async def invalidate(self, bo: BufferObject, first_page: int, num_pages: int) -> None:
        self.unmapped.append(bo.name)
        for _ in range(self.checkpoints):
            await trio.lowlevel.checkpoint()


def lru_names(vdev: VirtualDevice, region: str) -> list[str]:
    """BOs on a region's LRU, the first victim first."""
    return [item.bo.name for item in vdev.ttm.managers[region].lru]
