"""Kernel BOs (ttm_bo_type_kernel): memory that a driver has for itself, such as firmware, rings, page tables.

One has no file: no client can name it, so none ever maps it, and no fault and no INVAL is for it. It takes its space in
its region all the same, stands on the LRU unless it is pinned, is evicted, suspended and brought back as any BO, and
is shown as `kernel:NAME` by `regions/*/{lru,map}` and the trace. Its memory comes as it is, not cleared; the driver
reads and writes it by `ttmfs.ttm.peek` (its ttm_bo_kmap).
"""

import errno
from typing import Final

from ttmfs.errors import TtmError, no_such
from ttmfs.observe import points
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.device import Device
from ttmfs.ttm.funcs import DriverFuncs
from ttmfs.ttm.placement import Place
from ttmfs.units import PAGE_SHIFT, pages_of

_PREFIX: Final = "kernel:"


class KernelBo:
    """What stands where another BO has its file."""

    __slots__ = ("path",)

    def __init__(self, name: str) -> None:
        self.path = _PREFIX + name
        """The name of the BO."""


def create_kernel_bo(
    ttm: Device, funcs: DriverFuncs[BufferObject], name: str, size: int, place: Place, *, pinned: bool = True
) -> BufferObject:
    """A kernel BO of `size` bytes, rounded up to pages, at `place` (amdgpu_bo_create_kernel).

    Where BOs live in system pages (gtt, system) a page gets its memory when it is first written. Nobody is evicted
    for it. It is the device's own until `ttmfs.ttm.lifetime.release`. TtmError: EINVAL no such region, or no size;
    ENOSPC it is full there, E2BIG it is larger than that. There is no BO then.
    """
    manager = ttm.managers.get(place.mem_type)
    if manager is None:
        raise no_such(place.mem_type, "region", ttm.managers)
    if size <= 0:
        raise TtmError(errno.EINVAL, f"{_PREFIX}{name}: a kernel BO of {size} bytes: say its size, it does not grow")
    bo = BufferObject(ttm, funcs, placement=(place,))
    bo.private = bo.named = KernelBo(name)
    bo.size = pages_of(size) << PAGE_SHIFT
    try:
        bo.assign(manager.alloc(bo, place))
    except TtmError:
        ttm.bos.pop(bo)
        raise
    bo.placed = True
    if pinned:
        bo.pin()
    points.bo_create(ttm.trace, bo, ino=0, uid=0)
    return bo
