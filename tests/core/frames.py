"""BOs of whole frames of 2 MiB and a tail that is none, and what their bytes must be."""

from functools import cache

import trio

from tests.core.harness import MIB, PAGE
from tests.core.stores import check_empty, noise, same, store_of
from tests.memory.host_memory import resident_pages
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.memory.arena import FRAME_PAGES
from ttmfs.memory.stores import ShmemStore
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

FRAMES = 3
PAGES = FRAMES * FRAME_PAGES + 100
"""A tail that is no frame, too."""
SIZE = PAGES * PAGE


@cache
def content(name: str, size: int) -> bytes:
    return noise(name, size)


class Bo:
    """A BO in whole frames, and what its bytes must be."""

    def __init__(self, vdev: VirtualDevice, bo: BufferObject, model: bytearray) -> None:
        self.vdev, self.bo, self.model = vdev, bo, model

    async def backup(self) -> int:
        flags = BackupFlags()
        out: int = (await calls.backup_one(self.vdev, self.bo, flags, OperationContext()))["pages_out"]
        return out

    async def restore(self) -> None:
        await calls.restore(self.vdev, self.bo, OperationContext())

    async def write(self, offset: int, data: bytes) -> None:
        self.model[offset : offset + len(data)] = data
        await access.write(self.bo, offset, data)

    def cut(self, offset: int) -> None:
        """Truncate, and grow again."""
        size = len(self.model)
        lifetime.set_size(self.bo, offset)
        lifetime.set_size(self.bo, size)
        self.model[offset:] = bytes(size - offset)

    async def check(self) -> None:
        await same(self.bo, bytes(self.model))

    async def gone(self) -> None:
        """Unlinked: nothing is left of it, nor of others."""
        lifetime.release(self.bo)
        with trio.fail_after(10):
            while self.vdev.ttm.num_bos:
                await trio.sleep(0.001)
        check_empty(self.vdev)
        assert self.vdev.selfcheck() == []
        store = store_of(self.vdev)
        assert isinstance(store, ShmemStore)
        with trio.fail_after(10):
            # What is just being given back counts as used.
            while store.slots.used or store.waste:
                store.writeback()
                await trio.sleep(0.001)
        store.check()
        assert resident_pages(store._arena) == 0


async def make(vdev: VirtualDevice, name: str = "a", size: int = SIZE) -> Bo:
    """A BO full of noise, in as large blocks as there are."""
    bo = vdev.create_bo(name)
    lifetime.set_size(bo, size)
    await access.write(bo, 0, content(name, size))
    assert bo.tt is not None
    assert bo.tt.page_orders().get(9, 0) == size // (2 * MIB)
    return Bo(vdev, bo, bytearray(content(name, size)))
