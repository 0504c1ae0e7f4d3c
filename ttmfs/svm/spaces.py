"""Svm: all shared virtual address spaces of one device, and what they have in common."""

import errno
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import trio

from ttmfs.errors import TtmError
from ttmfs.memory.account import Held
from ttmfs.svm.chunk import Chunk
from ttmfs.svm.counters import SvmCounters
from ttmfs.svm.devmem import DevMemFuncs
from ttmfs.svm.pages import Pages
from ttmfs.svm.policy import MigrationPolicy
from ttmfs.svm.shrinker import SpaceShrinker
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.zero_pages import reclaim_zero_pages
from ttmfs.sync.bell import Bell
from ttmfs.ttm.account import MEMORY, SWAP, Account
from ttmfs.ttm.funcs import NoUnmapper, Unmapper
from ttmfs.ttm.placement import VRAM

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice

DEFAULT_NOTIFIER_SIZE: Final = 512 << 20
DEFAULT_TIMESLICE_MS: Final = 5.0
MAX_SPACES: Final = 4096


class Svm:
    """The spaces of `vdev`, and what they share (ttmfs.svm.shared).

    `notifier_size` (bytes, a power of two) counts for spaces made afterwards.
    """

    def __init__(self, vdev: "VirtualDevice") -> None:
        self.vdev = vdev
        self.unmapper: Unmapper[AddressSpace] = NoUnmapper()
        self.counters = SvmCounters()
        self.notifier_size = DEFAULT_NOTIFIER_SIZE
        self.policy = MigrationPolicy.of(vdev.config)
        self.atomic_timeslice_ms = DEFAULT_TIMESLICE_MS
        self.spaces: dict[AddressSpace, None] = {}
        self.funcs = DevMemFuncs(vdev)
        self.migrate_lock, self.memory_lock = trio.Lock(), trio.Lock()
        self.warmth: OrderedDict[Chunk, AddressSpace] = OrderedDict()
        vdev.ttm.accounts.elsewhere.append(self._charged)
        vdev.ttm.shrinkables.append(SpaceShrinker(self.warmth, self.spaces.keys()))
        vdev.ttm.reclaimers.append(partial(reclaim_zero_pages, self.spaces))
        vdev.ttm.holders.append(self._holders)
        vdev.ttm.slot_holders.append(self._slot_holders)
        self._leaving: list[AddressSpace] = []
        self._garbage = Bell()

    def create(self, name: str, account: Account | None = None) -> AddressSpace:
        """A new space of size 0, that `account` (or nobody in particular) pays for. TtmError(ENOSPC): too many."""
        if len(self.spaces) >= MAX_SPACES:
            raise TtmError(errno.ENOSPC, f"there are {MAX_SPACES} address spaces already: unlink one")
        space = AddressSpace(self, name, account or self.vdev.ttm.accounts.root)
        self.spaces[space] = None
        return space

    @property
    def regions(self) -> tuple[str, ...]:
        """The device's own memory: where ranges may migrate to (the drm_pagemaps)."""
        managers = self.vdev.ttm.managers.values()
        return tuple(manager.name for manager in managers if not manager.use_tt and manager.size)

    @property
    def has_vram(self) -> bool:
        """Is there a place to migrate to (devmem_possible)? With `--vram 0` the device works in system."""
        return VRAM in self.regions

    def _holders(self) -> Iterator[tuple[Chunk, Held]]:
        """The chunks, for the device's audit of its pages."""
        for space in list(self.spaces):
            for chunk in list(space.chunks.values()):
                yield chunk, Chunk.system_pages
        for space in self._leave():
            for chunk in list(space.chunks.values()):
                yield chunk, Chunk.system_pages

    def _slot_holders(self) -> Iterator[tuple[Chunk, Held]]:
        """The chunks that have something in the store, for the device's audit of its slots."""
        for space in (*self.spaces, *self._leave()):
            for chunk in list(space.chunks.values()):
                if chunk.stored is not None:
                    yield chunk, _slots

    def _leave(self) -> list[AddressSpace]:
        """Those that were released and have copies or loads under way still."""
        self._leaving = [
            space for space in self._leaving if any(chunk.moves or chunk.stored for chunk in space.chunks.values())
        ]
        return self._leaving

    def forget(self, space: AddressSpace) -> None:
        """It was released."""
        self.spaces.pop(space, None)
        self._leaving.append(space)
        self._leave()

    def _charged(self) -> Iterable[tuple[Account, str, int]]:
        """What spaces have that somebody pays for."""
        for space in self.spaces:
            yield space.account, MEMORY, space.held_pages
            yield space.account, SWAP, space.stored_pages

    def garbage_listed(self) -> None:
        """A range waits for the garbage collector."""
        self._garbage.ring()

    async def run(self) -> None:
        """The garbage collector's worker; runs until cancelled."""
        while True:
            await self._garbage.heard()
            for space in list(self.spaces):
                space.collect_garbage()
                await trio.lowlevel.checkpoint()

    async def unplug(self) -> None:
        """The device is gone: nobody keeps its pages in a cache. Call it when `unplugged` is set."""
        for space in list(self.spaces):
            space.gate.wake()
            await space.flush(0, space.num_pages)

    def stats(self) -> dict[str, int]:
        """The `svm` object of stats."""
        counters = self.counters.as_dict()
        counters["spaces"] = len(self.spaces)
        counters["ranges"] = sum(len(space.table) for space in self.spaces)
        counters["system_pages"] = sum(space.held_pages for space in self.spaces)
        counters["backed_up_pages"] = sum(space.stored_pages for space in self.spaces)
        return counters

    def wake(self) -> None:
        """Every request that waits looks again at what to do: the mount is going down."""
        for space in self.spaces:
            space.gate.wake()

    def close(self) -> None:
        """Release every space."""
        for space in list(self.spaces):
            space.release()


def _slots(chunk: Chunk) -> Pages:
    return np.zeros(0, np.uint32) if chunk.stored is None else chunk.stored.slots()
