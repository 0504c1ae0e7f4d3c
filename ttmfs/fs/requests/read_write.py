"""DataRequests: READ and WRITE. Those of BO files are the faults: whatever can be answered at once is, without an await
between the last check and the reply (`read_at_once`, `write_at_once`: the device loop asks them first, and so do the
handlers).
"""

import time
from collections.abc import Callable
from typing import Any, Final, Literal

import pyfuse3
import trio

from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.fs.requests.guard import fuse_error, unforeseen
from ttmfs.fs.requests.served import BoHandle, Served
from ttmfs.fs.requests.space_handle import SpaceHandle
from ttmfs.observe.asker import ASKER, WHY
from ttmfs.ttm import access
from ttmfs.ttm.advice import used_at_once
from ttmfs.ttm.at_once import Buffer
from ttmfs.ttm.request import trace_fault
from ttmfs.units import PAGE_MASK, PAGE_SHIFT

LARGE_BYTES: Final = 64 << 10


class DataRequests:
    """What open files hold."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.counters = served.counters
        self._handles = served.handles
        self._ttm = served.ttm
        self._trace = served.ttm.trace
        self.read_at_once: Callable[[int, int, int], Buffer | None] = self._read_at_once
        self.large_write: Callable[[], None] = lambda: None
        """Called after a WRITE of LARGE_BYTES or more that waited for nothing."""
        self._trace.watch(self._trace_switched)

    def _trace_switched(self) -> None:
        """While faults are traced another method answers READs, so that tracing that is off costs them nothing."""
        self.read_at_once = self._read_at_once_traced if self._trace.wants("fault") else self._read_at_once

    def _read_at_once(self, fh: int, off: int, size: int) -> Buffer | None:
        """A READ of a BO that waits for nothing: its bytes, to be handed on before the next await. Else None."""
        handle = self._handles.get(fh)
        if type(handle) is not BoHandle:
            return None
        bo, counters = handle.bo, self.counters
        view = bo.vmap
        try:
            if view is None or bo.resv.locked:
                ASKER.set(handle.pid)
                WHY.set(f"READ of {bo.name}")
                data = access.read_at_once(bo, off, size)
                if data is None:
                    return None
                length = len(data)
            else:
                data = view[off : off + size]
                length = len(data)
                pages = (length + 4095) >> PAGE_SHIFT
                faults = self._ttm.counters.faults
                faults.count += 1
                faults.pages += pages
                bo.faults += 1
                bo.fault_pages += pages
                bo.handed_out = True
                if off + length >= bo.size:
                    bo.eof_page_read = True
                if bo.adviser is not None:
                    used_at_once(bo, "read", off, length)
            counters.read += 1
            counters.read_bytes += length
            return data
        except (Exception, BaseExceptionGroup) as error:
            raise self._failed("read", handle, error) from None

    def _read_at_once_traced(self, fh: int, off: int, size: int) -> Buffer | None:
        """As `_read_at_once`; records what it answers from a view, the others are recorded where they are served."""
        handle = self._handles.get(fh)
        if type(handle) is not BoHandle or handle.bo.vmap is None or handle.bo.resv.locked:
            return self._read_at_once(fh, off, size)
        started = time.monotonic_ns()
        data = self._read_at_once(fh, off, size)
        assert data is not None
        trace_fault(handle.bo, off, len(data), started)
        return data

    def write_at_once(self, fh: int, off: int, data: Buffer) -> bool:
        """A WRITE into a BO that waits for nothing and ends within it: has it been done?"""
        handle = self._handles.get(fh)
        if type(handle) is not BoHandle:
            return False
        bo, counters = handle.bo, self.counters
        handle.file.written = True
        handle.file.shown = NOT_SHOWN  # the kernel asks again after its own WRITEs
        view = bo.vmap
        end = off + len(data)
        try:
            if view is None or end > bo.size:
                ASKER.set(handle.pid)
                WHY.set(f"WRITE of {bo.name}")
                if not access.write_at_once(bo, off, data):
                    return False
            else:
                view[off:end] = data
                bo.handed_out = True
                used_at_once(bo, "write", off, len(data))
                if bo.dirty is not None:
                    bo.dirty.wrote(off >> PAGE_SHIFT, (end + PAGE_MASK) >> PAGE_SHIFT)
            counters.write += 1
            counters.write_bytes += len(data)
            return True
        except (Exception, BaseExceptionGroup) as error:
            raise self._failed("write", handle, error) from None

    async def read(self, fh: int, off: int, size: int) -> Any:
        """A fault of every page named."""
        data = self.read_at_once(fh, off, size)
        if data is not None:
            return data
        handle = self._handles.get(fh)
        try:
            if type(handle) is BoHandle:
                self.counters.read += 1
                slow = await access.read(handle.bo, off, size)
                self.counters.read_bytes += len(slow)
                return slow
            if type(handle) is SpaceHandle:
                ASKER.set(handle.pid)
                WHY.set("READ of an address space")
                return await handle.read(off, size)
            return await self.served.virtual(fh).read(off, size)
        except (Exception, BaseExceptionGroup) as error:
            raise self._failed("read", handle, error) from None

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Bytes from a pwrite or from writeback of a mapping: they look alike."""
        if self.write_at_once(fh, off, buf):
            if len(buf) >= LARGE_BYTES:
                self.large_write()
            return len(buf)
        handle = self._handles.get(fh)
        try:
            if type(handle) is BoHandle:
                self.counters.write += 1
                await access.write(handle.bo, off, buf)
                self.counters.write_bytes += len(buf)
                return len(buf)
            if type(handle) is SpaceHandle:
                ASKER.set(handle.pid)
                WHY.set("WRITE of an address space")
                return await handle.write(off, buf)
            ASKER.set(self.served.openers.get(fh, 0))
            WHY.set("")
            with trio.CancelScope(shield=True):
                written = await self.served.virtual(fh).write(off, buf)
            return written
        except (Exception, BaseExceptionGroup) as error:
            raise self._failed("write", handle, error) from None

    def _failed(self, what: Literal["read", "write"], handle: object, error: BaseException) -> pyfuse3.FUSEError:
        """Called in an except block: counted, told and logged; the reply for it."""
        if what == "write" and type(handle) is BoHandle:
            self.counters.write_errors += 1  # a SpaceHandle counts and notes its own
            handle.file.write_failed = True
        if not isinstance(error, OSError):
            return unforeseen(self.counters, what)
        if type(handle) is BoHandle:
            self.served.failed(handle.bo.name, what.upper(), error, handle.file.uid)
        return fuse_error(error, self.counters, what)
