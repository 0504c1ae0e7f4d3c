"""Region map: which pages of a region belong to whom, as runs (for programs that draw pictures of memory).

One row per maximal run of pages that belong to the same BO and lie in blocks of the same order, ascending; free pages
are left out. `system` is numbered by pages of its arena, and has the pages of everybody whose bytes are there, also of
BOs in gtt; gtt by its address space, where an order means nothing and is 0; a region with memory of its own by that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import trio
from numpy.typing import NDArray

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.usage import kernel_bos
from ttmfs.sync.breather import Breather
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import Resource, ResourceManager
from ttmfs.ttm.tt import TT

GHOST: Final = "(ghost)"
"""Memory that a move left behind, or that is on its way to a BO: no BO holds it now."""
POOL: Final = "(pool)"

_FREE: Final = -1
_NOBODY: Final = 0
_POOLED: Final = 1


@dataclass(frozen=True, slots=True)
class RegionMap:
    """`first`, `pages` int64, `order` uint8 and `owner` int32, all (n,); `owner` is an index of `labels`."""

    first: NDArray[np.int64]
    pages: NDArray[np.int64]
    order: NDArray[np.uint8]
    owner: NDArray[np.int32]
    labels: list[str]


class _Painter:
    """Owners of pages while BOs are gone through."""

    def __init__(self, num_pages: int) -> None:
        self.owner: NDArray[np.int32] = np.full(num_pages, _FREE, np.int32)
        self.labels = [GHOST, POOL]

    def label(self, bo: BufferObject) -> int:
        if bo.ghost or bo.deleted or not (name := bo.name):
            return _NOBODY
        self.labels.append(name)
        return len(self.labels) - 1


async def region_map(
    vdev: VirtualDevice,
    names: Namespace,
    manager: ResourceManager,
    others: Iterable[tuple[str, NDArray[np.uint32]]] = (),
) -> RegionMap:
    """The map of a region; lets others run every millisecond, so that it may be a blend of two moments.

    `others` are (label, page numbers) of system memory that is held without a BO.
    """
    if manager.name == SYSTEM:
        return await _system(vdev, names, others)
    painter = _Painter(manager.num_pages)
    orders = np.zeros(manager.num_pages, np.uint8)
    breather = Breather()
    for bo in await _all_bos(vdev, names) if manager.num_bos else ():
        resource = bo.resource
        if resource is not None and resource.manager is manager and resource.num_pages:
            _paint(painter, resource, bo)
        await breather.step()
    for resource in list(manager.unassigned):
        if resource.num_pages:
            _paint(painter, resource, resource.bo)
    if isinstance(manager, BuddyManager):
        orders = manager.buddy.order_map()
        _agree(painter, orders)
    return await _runs(painter, orders)


def _paint(painter: _Painter, resource: Resource, bo: BufferObject) -> None:
    label = painter.label(bo)
    run = slice(resource.start, resource.start + resource.num_pages)
    where = run if resource.scattered is None else resource.scattered
    painter.owner[where] = label


async def _all_bos(vdev: VirtualDevice, names: Namespace) -> list[BufferObject]:
    return [file.bo for file in names.files.values()] + await kernel_bos(vdev, names)


async def _system(
    vdev: VirtualDevice, names: Namespace, others: Iterable[tuple[str, NDArray[np.uint32]]]
) -> RegionMap:
    pool = vdev.pool
    painter = _Painter(pool.num_pages)
    breather = Breather()
    for bo in await _all_bos(vdev, names):
        label = _FREE
        for tt in bo.tts:
            if tt.populated_pages and not tt.external:
                label = painter.label(bo) if label == _FREE else label
                await _paint_tt(painter, tt, label, breather)
        await breather.step()
    known: dict[str, int] = {}
    for name, pages in others:
        if name not in known:
            known[name] = len(painter.labels)
            painter.labels.append(name)
        painter.owner[pages] = known[name]
        await breather.step()
    # Last: whatever was freed meanwhile is free.
    orders = pool.order_map()
    await trio.lowlevel.checkpoint()
    _agree(painter, orders)
    await trio.lowlevel.checkpoint()
    if pool.pooled_pages:
        painter.owner[pool.pooled_map()] = _POOLED
        await trio.lowlevel.checkpoint()
    return await _runs(painter, orders)


def _agree(painter: _Painter, orders: NDArray[np.uint8]) -> None:
    """Free is what the allocator has free; `orders` (order + 1, 0 when free) become orders."""
    painter.owner[(painter.owner == _FREE) & (orders != 0)] = _NOBODY
    painter.owner[orders == 0] = _FREE
    orders -= orders != 0


_STEP: Final = 1 << 16


async def _paint_tt(painter: _Painter, tt: TT, label: int, breather: Breather) -> None:
    if tt.num_pages <= _STEP:
        painter.owner[tt.pages_in(0, tt.num_pages)[1]] = label
        return
    first = 0
    while (first := tt.next_content(first)) < tt.num_pages:
        painter.owner[tt.pages_in(first, _STEP)[1]] = label
        first += _STEP
        await breather.step()


async def _runs(painter: _Painter, orders: NDArray[np.uint8]) -> RegionMap:
    """Where owner or order changes, a step at a time."""
    owner = painter.owner
    starts: list[NDArray[np.intp]] = [np.zeros(min(len(owner), 1), np.intp)]
    for begin in range(0, len(owner) - 1, _STEP):
        end = min(begin + _STEP, len(owner) - 1)
        changes = (owner[begin + 1 : end + 1] != owner[begin:end]) | (orders[begin + 1 : end + 1] != orders[begin:end])
        starts.append(np.flatnonzero(changes) + begin + 1)
        await trio.lowlevel.checkpoint()
    first = np.concatenate(starts).astype(np.int64, copy=False)
    await trio.lowlevel.checkpoint()
    pages = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=pages[:-1])
    pages[-1:] = len(owner) - first[-1:]
    owners = owner[first]
    await trio.lowlevel.checkpoint()
    taken = np.flatnonzero(owners != _FREE)
    if len(taken) != len(first):
        first, pages, owners = first[taken], pages[taken], owners[taken]
    await trio.lowlevel.checkpoint()
    return RegionMap(first, pages, orders[first], owners, painter.labels)


def rows(found: RegionMap, begin: int, end: int, labels: list[str]) -> Iterable[str]:
    """Lines `first<TAB>pages<TAB>order<TAB>bo` of rows [begin, end); `labels` as they shall be written."""
    part = slice(begin, end)
    columns = zip(
        found.first[part].tolist(),
        found.pages[part].tolist(),
        found.order[part].tolist(),
        found.owner[part].tolist(),
        strict=True,
    )
    return [f"{first}\t{pages}\t{order}\t{labels[owner]}\n" for first, pages, order, owner in columns]
