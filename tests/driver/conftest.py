"""A virtual device without a mount, with its engines running."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import trio

from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice

MIB = 1 << 20


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[VirtualDevice]:
    vdev = VirtualDevice(config)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(vdev.run)
            yield vdev
            nursery.cancel_scope.cancel()
    finally:
        vdev.close()


MakeDevice = Callable[..., AbstractAsyncContextManager[VirtualDevice]]


@pytest.fixture
def device() -> MakeDevice:
    """`async with device(vram=…) as vdev:`"""

    def make(**options: object) -> AbstractAsyncContextManager[VirtualDevice]:
        values: dict[str, object] = {"vram": 16 * MIB, "gtt": 64 * MIB, "memory": 64 * MIB, "swap": 0, **options}
        return running(Config(**values))  # type: ignore[arg-type]

    return make
