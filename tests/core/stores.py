"""What the tests of backup and restore share: devices by kind of store, a store that waits to be told, its books."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import trio

from tests.core.harness import MIB, PAGE, device
from ttmfs.driver.device import VirtualDevice
from ttmfs.memory.arena import Arena
from ttmfs.memory.runs import PageArray
from ttmfs.memory.stores import ShmemStore, SwapStore
from ttmfs.memory.stores.transfer import LoadTransfer, StoreTransfer
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.page_vector import decode_handles

KINDS = ("shmem", "file", "zstd", "zstd+file")
LONGEST_HOLD = 20.0
"""Seconds after which a held store goes on by itself, so that a test that fails ends."""


def spec(kind: str, folder: Path) -> str:
    """What --swap-store says for a kind of store."""
    return f"{kind}:{folder / 'store'}" if kind.endswith("file") else kind


def noise(name: str, size: int) -> bytes:
    """Bytes that no store can compress, the same for the same name."""
    return Random(name).randbytes(size)


async def make_noise(vdev: VirtualDevice, name: str, pages: int) -> BufferObject:
    """A BO full of noise."""
    bo = vdev.create_bo(name)
    await access.write(bo, 0, noise(name, pages * PAGE))
    return bo


async def same(bo: BufferObject, expected: bytes) -> None:
    """Every byte, read in pieces of 1 MiB."""
    assert bo.size == len(expected)
    for offset in range(0, bo.size, MIB):
        got = bytes(await access.read(bo, offset, min(MIB, bo.size - offset)))
        if got != expected[offset : offset + MIB]:
            wrong = next(at for at, byte in enumerate(got) if byte != expected[offset + at])
            raise AssertionError(f"{bo.name}: byte {offset + wrong} (page {(offset + wrong) // PAGE}) is wrong")


def store_of(vdev: VirtualDevice) -> SwapStore:
    """The device's store."""
    store = vdev.ttm.swap_store
    assert store is not None
    return store


def handles(bo: BufferObject) -> list[int]:
    """Handles of the pages that are in the store, by page."""
    assert bo.tt is not None
    entries = bo.tt.at(bo.tt.handles_in(0, bo.tt.num_pages))
    assert (entries & 1 == 1).all()
    found: list[int] = decode_handles(entries).tolist()
    return found


def fail(vdev: VirtualDevice, place: str, after: int, times: int = 1) -> None:
    """The page after `after` others fails, `times` times; -1 for ever."""
    attr = vdev.ttm.inject[place]
    attr.space, attr.times, attr.probability = after, times, 100


def heal(vdev: VirtualDevice) -> None:
    """Nothing fails any more."""
    for place in vdev.ttm.inject:
        vdev.ttm.inject[place].probability = 0


class Allocations:
    """Counts the pages that the pool gives out from now on."""

    def __init__(self, vdev: VirtualDevice) -> None:
        self.pages = 0
        real = vdev.pool.alloc

        def alloc(num_pages: int, **how: Any) -> Any:
            got = real(num_pages, **how)
            self.pages += num_pages
            return got

        vdev.pool.alloc = alloc  # type: ignore[method-assign]


def check_empty(vdev: VirtualDevice) -> None:
    """Nobody holds a page of the pool or of the store, and no restore is remembered."""
    assert vdev.pool.in_use_pages == 0
    assert store_of(vdev).slots.stored == 0
    assert not vdev.ttm.unfinished_restores


class Turnstile:
    """Lets everybody through while it is open, and one more for each `step` while it is shut."""

    def __init__(self) -> None:
        self._open = True
        self._steps = threading.Semaphore(0)

    def shut(self) -> None:
        """Nobody goes through from now on."""
        self._open, self._steps = False, threading.Semaphore(0)

    def step(self) -> None:
        """One goes through."""
        self._steps.release()

    def open(self) -> None:
        """Everybody goes through, those who wait too."""
        self._open = True
        self._steps.release(1000)

    def through(self) -> bool:
        """In a thread: wait for one's turn. False when nobody let it through."""
        return self._open or self._steps.acquire(timeout=LONGEST_HOLD)

    @property
    def is_open(self) -> bool:
        """Does nobody wait?"""
        return self._open


class HeldStore(ShmemStore):
    """A store whose bytes move in a thread, and wait at the turnstiles `writing` and `reading`."""

    blocking = True
    warm_seconds = 0.0

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.writing, self.reading = Turnstile(), Turnstile()
        self.held = 0

    def _hold(self, gate: Turnstile) -> None:
        if threading.current_thread() is threading.main_thread():
            # Who may not wait reads on the loop.
            return
        self.held += not gate.is_open
        assert gate.through(), "nobody let the store go on"

    def _write_steps(
        self, transfer: StoreTransfer, arena: Arena, pages: PageArray, writeback: bool
    ) -> Iterator[None]:
        self._hold(self.writing)
        yield from super()._write_steps(transfer, arena, pages, writeback)

    def _read_steps(self, transfer: LoadTransfer, arena: Arena, pages: PageArray) -> Iterator[None]:
        self._hold(self.reading)
        yield from super()._read_steps(transfer, arena, pages)

    async def until_held(self, count: int = 1) -> None:
        """Until so many transfers have stopped here, over all."""
        with trio.fail_after(LONGEST_HOLD):
            while self.held < count:
                await trio.sleep(0.001)


@asynccontextmanager
async def held_device(**options: Any) -> AsyncIterator[tuple[VirtualDevice, HeldStore]]:
    """A device with a HeldStore of 64 MiB. What is held is let go at the end."""
    async with device(**options) as vdev:
        store_of(vdev).close()
        store = HeldStore(64 * MIB)
        vdev.ttm.swap_store = store
        try:
            yield vdev, store
        finally:
            store.writing.open()
            store.reading.open()
