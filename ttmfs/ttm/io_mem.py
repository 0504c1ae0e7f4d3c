"""I/O mappings: what a device can show the CPU of its regions at a time (ttm_mem_io_reserve, nouveau's io_reserve_lru).

A driver whose aperture is smaller than what clients map has two hooks, `io_mem_reserve` and `io_mem_free`. A fault of a
BO in a region with memory of its own asks the first; its EAGAIN has the mapping that faulted longest ago taken from its
BO, which is unmapped for that (see ttmfs.ttm.fault), and is asked again. A BO without one is not reachable: its next
READ or WRITE is a fault. A mapping goes with an unmap of the whole BO, and when the BO leaves its place. Drivers
without the hooks map all there is.
"""

import errno
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from ttmfs.errors import TtmError
from ttmfs.ttm.resource import Resource


@runtime_checkable
class IoMemFuncs(Protocol):
    """The hooks of a driver (ttm_device_funcs.io_mem_reserve, io_mem_free). Neither waits."""

    def io_mem_reserve(self, resource: Resource) -> None:
        """Map it for the CPU. TtmError: EAGAIN when others have to be unmapped first; any other one is SIGBUS."""

    def io_mem_free(self, resource: Resource) -> None:
        """It is not mapped any more."""


class IoMem:
    """The mappings of one device. `funcs` None: its driver has no hooks."""

    def __init__(self) -> None:
        self.funcs: IoMemFuncs | None = None
        self._lru: dict[Resource, None] = {}

    def __iter__(self) -> Iterator[Resource]:
        """What is mapped, what faulted longest ago first; of one moment."""
        return iter(list(self._lru))

    def __len__(self) -> int:
        return len(self._lru)

    def has(self, resource: Resource) -> bool:
        """Is it mapped, or needs no mapping?"""
        return self.funcs is None or resource in self._lru or not resource.own_pages

    def reserve(self, resource: Resource) -> bool:
        """ttm_mem_io_reserve: map it, or note that it was used. False: some other has to go first. TtmError as the
        driver's."""
        if self.funcs is None or not resource.own_pages:
            return True
        if resource in self._lru:
            del self._lru[resource]
        else:
            try:
                self.funcs.io_mem_reserve(resource)
            except TtmError as error:
                if error.errno != errno.EAGAIN or not self._lru:
                    raise
                return False
            resource.bo.drop_vmap()
        self._lru[resource] = None
        return True

    def free(self, resource: Resource | None) -> None:
        """ttm_mem_io_free. Nothing, for what is not mapped."""
        if resource in self._lru and resource is not None and self.funcs is not None:
            del self._lru[resource]
            resource.bo.drop_vmap()
            self.funcs.io_mem_free(resource)

    def check(self) -> Iterator[str]:
        """What is wrong with them."""
        for resource in self._lru:
            if resource.bo.resource is not resource:
                yield f"io_mem: {resource.bo.name} has left the pages of {resource.mem_type} that are mapped for it"
