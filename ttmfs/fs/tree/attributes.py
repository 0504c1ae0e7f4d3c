"""Attributes of a BO: what `status`, `status.json`, `user.ttm.*` and the read-write files of objects/NAME/ say."""

import errno
from collections.abc import Callable, Mapping
from typing import Any, Final

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.dirty import DirtyTracker
from ttmfs.driver.namespace import BoFile
from ttmfs.driver.vmwgfx import VmwgfxTracker
from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import Result
from ttmfs.fs.commands.quoting import cell, escape
from ttmfs.memory.pool_types import Caching
from ttmfs.sync.resv import Usage
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import NUM_PRIORITIES, BufferObject
from ttmfs.ttm.placement import SYSTEM, format_placement
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_SIZE

MADVISE: Final = ("normal", "random", "sequential", "willneed", "dontneed")
_MAX_PREFAULT: Final = 1 << 20

_EMPTY: Final[Mapping[str, int]] = {}


def _runs(bo: BufferObject) -> int:
    in_region = 0
    if bo.own_pages and bo.resource is not None:
        pages = bo.resource.numbers(0, bo.own_pages)
        in_region = int((pages[1:].astype(int) - pages[:-1] != 1).sum()) + 1
    return in_region + (bo.tt.runs() if bo.tt is not None else 0)


def status(vdev: VirtualDevice, bo: BufferObject) -> dict[str, Any]:
    """Everything there is to say about one BO, under the names of `status`. Sizes are bytes, `*_pages` pages."""
    tt: TT | None = bo.tt
    vm = vdev.vms.home(bo)
    in_region = min(bo.own_pages, bo.num_pages)
    runs = _runs(bo)
    populated = in_region + (tt.populated_pages if tt is not None else 0)
    orders = tt.page_orders() if tt is not None else _EMPTY
    return {
        "name": bo.name,
        "names": paths(bo),
        "size": bo.size,
        "mem_type": bo.mem_type,
        "state": bo.state,
        "populated_pages": populated,
        "backed_up_pages": tt.backed_up_pages if tt is not None else 0,
        "page_orders": {str(order): blocks for order, blocks in sorted(orders.items())},
        "runs": runs,
        "contiguous": runs <= 1 and populated == bo.num_pages,
        "pin_count": bo.pin_count,
        "priority": bo.priority,
        "caching": bo.caching.name,
        "placement": format_placement(bo.placement),
        "prefault": bo.prefault,
        "madvise": bo.madvise,
        "fences": [fence.name for fence in bo.resv.get_fences(Usage.BOOKKEEP)],
        "bytes_moved": bo.pages_moved * PAGE_SIZE,
        "moves": bo.moves,
        "evictions": bo.evictions,
        "validations": bo.validations,
        "faults": bo.faults,
        "fault_pages": bo.fault_pages,
        "prefault_pages": bo.prefault_pages,
        "reservation_retries": bo.reservation_retries,
        "beneficial_order_failed": bool(tt is not None and tt.beneficial_order_failed),
        "purged": bo.purged,
        "imported": bo.external,
        "group": bo.group.live.path,
        "vm": "" if vm is None else vm.name,
        **_dirty(bo),
        "last_error": bo.last_error,
        "last_move": "" if bo.last_move is None else bo.last_move.sentence(bo.name, bo.moved_at),
    }


def paths(bo: BufferObject) -> list[str]:
    """All its names, as paths below bo/, oldest first; none when it was unlinked."""
    file = bo.private
    return [dentry.path for dentry in file.names] if isinstance(file, BoFile) else []


def _dirty(bo: BufferObject) -> dict[str, Any]:
    """Pages that clients have written since the device last took them, as far as FUSE shows it."""
    tracker = bo.dirty
    if not isinstance(tracker, DirtyTracker):
        return {}
    runs = tracker.runs()
    found: dict[str, Any] = {"dirty_pages": sum(end - first for first, end in runs), "dirty_runs": len(runs)}
    if isinstance(tracker, VmwgfxTracker):
        found["dirty_method"] = tracker.method(bo).value
    return found


def text_value(value: object) -> str:
    """A status value as text."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, dict):
        return " ".join(f"{key}:{count}" for key, count in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def text_of(key: str, value: object) -> str:
    """The value of a key of `status` as text; several names as commands take them."""
    return " ".join(map(escape, value)) if key == "names" and isinstance(value, list) else text_value(value)


def status_text(values: Mapping[str, object]) -> str:
    """`key:<TAB>value` lines; names are written as a command takes them."""
    return "".join(f"{key}:\t{_status_value(key, value)}\n" for key, value in values.items())


def _status_value(key: str, value: object) -> str:
    return escape(str(value)) if key in ("name", "vm") else cell(text_of(key, value))


def _set_placement(vdev: VirtualDevice, bo: BufferObject, text: str) -> None:
    bo.placement = vdev.parse_placement(text.split())
    if bo.mem_type == SYSTEM and (bo.tt is None or not bo.tt.populated_pages):
        bo.placed = False


def _set_priority(vdev: VirtualDevice, bo: BufferObject, text: str) -> None:
    del vdev
    if not (text.isdecimal() and text.isascii() and len(text) < 9 and int(text) < NUM_PRIORITIES):
        raise TtmError(errno.EINVAL, f"{text[:40]!r} is no priority: say 0 to {NUM_PRIORITIES - 1}, lower goes first")
    bo.priority = int(text)
    bo.relist()


def _set_prefault(vdev: VirtualDevice, bo: BufferObject, text: str) -> None:
    del vdev
    if not (text.isdecimal() and text.isascii() and len(text) < 9 and int(text) <= _MAX_PREFAULT):
        raise TtmError(errno.EINVAL, f"{text[:40]!r} is no number of pages up to {_MAX_PREFAULT}")
    bo.prefault = int(text)


def _set_madvise(vdev: VirtualDevice, bo: BufferObject, text: str) -> Result | None:
    """`retained`: whether the content is there still, where it might have been dropped until now (DRM's `retained`)."""
    if text not in MADVISE:
        raise no_such(text, "advice", MADVISE)
    retained = not bo.purged
    lifetime.set_madvise(bo, text)
    if text == "random":
        bo.prefault = 1
    elif text in ("sequential", "normal"):
        bo.prefault = max(vdev.config.prefault, 256) if text == "sequential" else vdev.config.prefault
    return None if bo.purgeable else {"retained": retained}


def _set_caching(vdev: VirtualDevice, bo: BufferObject, text: str) -> None:
    del vdev
    if text not in Caching.__members__:
        raise no_such(text, "caching type", Caching.__members__)
    if bo.tt is not None and (bo.tt.populated_pages or bo.tt.backed_up_pages):
        raise TtmError(errno.EBUSY, f"{bo.name!r} is populated: its caching can be set before its first use only")
    if bo.resv.locked:
        # Whoever has it reserved may be giving memory to the very tt that would be dropped.
        raise TtmError(errno.EBUSY, f"{bo.name!r} is in use: set its caching before its first use")
    bo.caching = Caching[text]
    bo.set_tt(None)


SETTABLE: Final[Mapping[str, Callable[[VirtualDevice, BufferObject, str], Result | None]]] = {
    "placement": _set_placement,
    "priority": _set_priority,
    "prefault": _set_prefault,
    "madvise": _set_madvise,
    "caching": _set_caching,
}


def get_text(bo: BufferObject, key: str) -> str:
    """One of SETTABLE as text, as it may be written."""
    if key == "placement":
        return format_placement(bo.placement)
    if key == "caching":
        return bo.caching.name
    return str(getattr(bo, key))


def set_text(vdev: VirtualDevice, bo: BufferObject, key: str, text: str) -> Result | None:
    """Set one attribute; returns what there is to say about it.

    TtmError: EINVAL for a value that it does not take, EBUSY, EPERM for a read-only one, ENOENT for a BO that is gone.
    """
    bo.check_alive()
    setter = SETTABLE.get(key)
    if setter is None:
        raise TtmError(errno.EPERM, f"{key} is read-only; these can be set: {' '.join(SETTABLE)}")
    return setter(vdev, bo, text.strip())
