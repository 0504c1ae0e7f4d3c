"""What the address spaces of a device have in common, as a space, a migration or a fault sees it.

The spaces are made and held by `ttmfs.svm.spaces.Svm`, which is this; nothing here knows a space, so that nothing that
a space is made of needs to know more.
"""

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Protocol

import trio

from ttmfs.svm.counters import SvmCounters
from ttmfs.svm.policy import MigrationPolicy
from ttmfs.ttm.funcs import DriverFuncs, Unmapper

if TYPE_CHECKING:
    from ttmfs.driver.device import VirtualDevice


class Shared(Protocol):
    """`migrate_lock` is the driver_migrate_lock: one migration into VRAM at a time, in order of arrival. `memory_lock`:
    one device fault at a time waits for memory."""

    vdev: "VirtualDevice"
    counters: SvmCounters
    unmapper: Unmapper[Any]
    """Who caches pages of the AddressSpaces."""
    notifier_size: int
    policy: MigrationPolicy
    atomic_timeslice_ms: float
    migrate_lock: trio.Lock
    memory_lock: trio.Lock
    warmth: OrderedDict[Any, Any]
    """Chunks that have system pages, least recently used first, with their spaces; some may have none by now."""

    @property
    def regions(self) -> tuple[str, ...]:
        """The device's own memory: where ranges may migrate to."""

    @property
    def has_vram(self) -> bool:
        """Is there a place to migrate to (devmem_possible)?"""

    @property
    def funcs(self) -> DriverFuncs[Any]:
        """What the BOs of spaces ask."""

    def garbage_listed(self) -> None:
        """A range waits for the garbage collector."""

    def forget(self, space: Any) -> None:
        """An AddressSpace was released."""
