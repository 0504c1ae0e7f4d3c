"""Holds and handles of a daemon under test: what its control channel can do (see daemon.py).

A hold stops the code that reaches it until it is released, at most `times` times and for one BO only if named:

* `validate`: the BO is reserved for a validate that has not looked for space yet;
* `inval`: the gate is unmapping, the message to the kernel not yet written;
* `invalled`: the kernel has dropped the pages, the gate is still unmapping;
* `open`, `create`: an OPEN of a BO or address space, or a CREATE of this name, has arrived;
* `copy`: an engine has moved the first 256 KiB of a copy and not yet the next;
* `svm_inval`, `svm_invalled`: as the two above, for a part of an address space.

Everything here runs on the daemon's loop, unless it says otherwise.
"""

import functools
import os
import select
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ttmfs.driver import calls, engine
from ttmfs.driver.entries import File
from ttmfs.fs.kernel.unmappers import BoPageCache, SpacePageCache
from ttmfs.fs.mount import Mount
from ttmfs.fs.requests import read_write
from ttmfs.fs.requests.guard import guarded
from ttmfs.fs.requests.name import NameRequests
from ttmfs.fs.requests.open import OpenRequests
from ttmfs.fs.requests.space_handle import SpaceHandle
from ttmfs.fs.tree import attributes
from ttmfs.fs.tree.stats import stats
from ttmfs.svm import cpu
from ttmfs.svm.space import AddressSpace
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Placement
from ttmfs.ttm.unmap import unmap_virtual


class Hold:
    """One place where code can be made to wait."""

    def __init__(self) -> None:
        self.armed = 0
        self.bo = ""
        self.held = 0
        self.released = trio.Event()

    async def here(self, name: str) -> None:
        """The held code calls this."""
        if self.armed <= 0 or self.bo not in ("", name):
            return
        self.armed -= 1
        self.held += 1
        with trio.CancelScope(shield=True):
            await self.released.wait()
        self.held -= 1


_PLACES = ("validate", "inval", "invalled", "copy", "create", "open", "svm_inval", "svm_invalled")
HOLDS = {name: Hold() for name in _PLACES}


SVM_LOG: list[tuple[str, str, int, int]] = []
"""(READ, WRITE or INVAL, space, offset, bytes) of every one since it was last asked for."""


def _log_svm() -> None:
    """Keep SVM_LOG, and put the holds into the INVALs of address spaces."""
    real_read, real_write = SpaceHandle.read, SpaceHandle.write
    real_invalidate = SpacePageCache.invalidate

    async def read(self: SpaceHandle, offset: int, size: int) -> Any:
        SVM_LOG.append(("READ", self.file.space.name, offset, size))
        return await real_read(self, offset, size)

    async def write(self: SpaceHandle, offset: int, data: bytes) -> int:
        SVM_LOG.append(("WRITE", self.file.space.name, offset, len(data)))
        return await real_write(self, offset, data)

    async def invalidate(self: SpacePageCache, space: AddressSpace, first_page: int, num_pages: int) -> None:
        SVM_LOG.append(("INVAL", space.name, first_page << 12, num_pages << 12))
        await HOLDS["svm_inval"].here(space.name)
        await real_invalidate(self, space, first_page, num_pages)
        await HOLDS["svm_invalled"].here(space.name)

    SpaceHandle.read = read
    SpaceHandle.write = write
    SpacePageCache.invalidate = invalidate


def install_holds() -> None:
    """Put the holds into the code; they do nothing until they are armed."""
    _log_svm()
    real_invalidate = BoPageCache.invalidate

    async def invalidate(self: BoPageCache, bo: BufferObject, first_page: int, num_pages: int) -> None:
        await HOLDS["inval"].here(bo.name)
        await real_invalidate(self, bo, first_page, num_pages)
        await HOLDS["invalled"].here(bo.name)

    BoPageCache.invalidate = invalidate
    real_validate = calls.validate

    async def validate(bo: BufferObject, placement: Placement, ctx: OperationContext) -> None:
        await HOLDS["validate"].here(bo.name)
        await real_validate(bo, placement, ctx)

    calls.validate = validate
    real_open = OpenRequests.open

    async def open_(self: OpenRequests, inode: int, flags: int, ctx: Any) -> Any:
        node = self.served.inodes.get(inode)
        if isinstance(node, File):
            await HOLDS["open"].here(node.path)
        return await real_open(self, inode, flags, ctx)

    OpenRequests.open = functools.wraps(real_open)(open_)
    real_create = NameRequests.create

    async def create(self: NameRequests, parent_inode: int, name: bytes, *rest: Any) -> Any:
        await HOLDS["create"].here(os.fsdecode(name))
        return await real_create(self, parent_inode, name, *rest)

    NameRequests.create = functools.wraps(real_create)(create)
    engine.trio = _HeldTrio()


class _HeldLowlevel:
    async def checkpoint(self) -> None:
        await HOLDS["copy"].here("")
        await trio.lowlevel.checkpoint()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)


class _HeldTrio:
    """The trio of the engine module: its checkpoint is the point between two steps of a copy."""

    lowlevel = _HeldLowlevel()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


EXCEPTIONS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("made to fail"),
    "MemoryError": lambda: MemoryError("made to fail"),
    "OSError": lambda: OSError("made to fail, without an errno"),
    "AssertionError": AssertionError,
    "ExceptionGroup": lambda: ExceptionGroup("made to fail", [ValueError("one"), KeyError("two")]),
    "BaseExceptionGroup": lambda: BaseExceptionGroup("made to fail", [GeneratorExit()]),
    "RecursionError": lambda: RecursionError("made to fail"),
    "StopAsyncIteration": lambda: StopAsyncIteration("made to fail"),
}


class Control:
    """What the test may ask of the daemon. One method per command; arguments and results are JSON."""

    def __init__(self, mount: Mount) -> None:
        self._mount = mount
        self._real: dict[str, Any] = {}

    def hold(self, name: str, bo: str = "", times: int = 1) -> None:
        """Arm a hold."""
        hold = HOLDS[name]
        hold.armed, hold.bo, hold.released = times, bo, trio.Event()

    def release(self, name: str) -> None:
        """Let go what is held, hold nothing more."""
        HOLDS[name].armed = 0
        HOLDS[name].released.set()

    def held(self, name: str) -> int:
        """How many wait there now."""
        return HOLDS[name].held

    def parked(self) -> int:
        """READs and WRITEs that could not be answered at once and still wait."""
        return len(self._mount.vdev.ttm.counters.requests.parked)

    def commands(self) -> int:
        """Commands that are under way."""
        return len(self._mount.runner._running)

    async def stats(self) -> dict[str, Any]:
        """As the file `stats`."""
        return await stats(
            self._mount.vdev, self._mount.machine.names, self._mount.tree.page_cache, self._mount.svm
        )

    def statuses(self) -> dict[str, Any]:
        """status.json of every BO."""
        machine = self._mount.machine
        return {file.bo.name: attributes.status(machine.vdev, file.bo) for file in machine.names.files.values()}

    async def state(self) -> dict[str, Any]:
        """What no rejected command may change: stats without the counts of requests, and every status."""
        self.give_back_now()
        counted = await self.stats()
        del counted["requests"]
        statuses = self.statuses()
        for one in statuses.values():
            del one["last_error"]
        return {"stats": counted, "statuses": statuses}

    def gates(self) -> dict[str, list[Any]]:
        """[unmapping, copies pending, reserved, size] of every BO."""
        return {
            file.bo.name: [file.bo.gate.unmapping, len(file.bo.copies), file.bo.resv.locked, file.bo.size]
            for file in self._mount.machine.names.files.values()
        }

    def selfcheck(self) -> list[str]:
        """Sentences that say what is wrong."""
        return self._mount.tree.selfcheck()

    def svm_log(self) -> list[tuple[str, str, int, int]]:
        """Every READ, WRITE and INVAL of address spaces since this was last asked."""
        log = list(SVM_LOG)
        SVM_LOG.clear()
        return log

    def spaces(self) -> int:
        """Address spaces that exist, with or without a name."""
        return len(self._mount.spaces.files)

    def look_at_all(self) -> None:
        """Collect all garbage."""
        self._mount.collector.look_at_all()

    def nodes(self) -> int:
        """Inodes that the kernel knows."""
        return len(self._mount.served.inodes)

    def handles(self) -> int:
        """Open files of BOs."""
        return sum(file.opens for file in self._mount.machine.names.files.values())

    async def unmap_part(self, name: str, first: int, count: int) -> None:
        """INVAL of some pages, as who holds the reservation does it."""
        bo = next(file.bo for file in self._mount.machine.names.files.values() if file.bo.name == name)
        await unmap_virtual(bo, first, count)

    def give_back_now(self) -> None:
        """What goes back to the host a while after it was freed goes now: so that time alone changes nothing."""
        self.trim_pool()
        store = self._mount.vdev.ttm.swap_store
        while store is not None and (work := store.begin_upkeep()) is not None:
            store.run_upkeep(work)
            store.end_upkeep(work)

    def trim_pool(self) -> None:
        """Give pooled pages back now instead of after the idle time."""
        pool = self._mount.vdev.pool
        pool.limit_pages, limit = 0, pool.limit_pages
        for _ in range(pool.idle_windows):
            while pool.drop_idle():
                pass
        shrink = getattr(pool, "shrink", None)
        if pool.pooled_pages and shrink is not None:
            shrink(pool.pooled_pages)
        pool.limit_pages = limit

    def take_from_device(self) -> bool:
        """The device loop looks for a request, as after a poll that found one which is gone. True: there is one."""
        assert self._mount.device_loop is not None
        if select.select([self._mount.device_loop._device], [], [], 0)[0]:
            return True
        self._mount.device_loop.begin()
        return self._mount.device_loop.take()

    def fail_handler(self, handler: str, exception: str) -> None:
        """Make the code of a FUSE handler raise; `restore_handlers` ends it."""
        if handler in ("read", "write"):
            self._real.setdefault(f"access.{handler}", getattr(read_write.access, handler))
            setattr(read_write.access, handler, _raiser(EXCEPTIONS[exception]))
            self._real.setdefault(f"access.{handler}_at_once", getattr(read_write.access, f"{handler}_at_once"))
            setattr(read_write.access, f"{handler}_at_once", lambda *_: None)
            return
        real = getattr(self._part(handler), handler)
        assert hasattr(real, "__wrapped__"), f"{handler} is not guarded"
        self._real.setdefault(handler, real)
        self._answer(handler, guarded(functools.wraps(real.__wrapped__)(_raiser(EXCEPTIONS[exception]))))

    def _part(self, handler: str) -> type:
        return next(type(part) for part in self._mount.operations.parts if hasattr(part, handler))

    def _answer(self, handler: str, answer: Callable[..., Awaitable[Any]]) -> None:
        setattr(self._part(handler), handler, answer)
        self._mount.operations.take_parts()

    def fail_space(self, handler: str, exception: str) -> None:
        """Make `read` or `write` of all address spaces raise; `restore_handlers` ends it."""
        self._real.setdefault(f"space.{handler}", getattr(cpu, handler))
        setattr(cpu, handler, _raiser(EXCEPTIONS[exception]))

    def restore_handlers(self) -> None:
        """As before fail_handler and fail_space."""
        owners: dict[str, Any] = {"access": read_write.access, "space": cpu}
        for name, real in self._real.items():
            owner, _, attribute = name.rpartition(".")
            if owner:
                setattr(owners[owner], attribute, real)
            else:
                self._answer(name, real)
        self._real.clear()

    async def inval(self, ino: int) -> bool:
        """INVAL of any inode number."""
        assert self._mount.tree.page_cache is not None
        return await self._mount.tree.page_cache.invalidate(ino)


def _raiser(make: Callable[[], BaseException]) -> Callable[..., Awaitable[Any]]:
    async def raiser(*_args: Any, **_more: Any) -> Any:
        raise make()

    return raiser
