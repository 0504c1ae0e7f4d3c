"""DataRequests: READ and WRITE. Those of BO files are the faults: whatever can be answered at once is, without an await
between the last check and the reply.
"""

import time
from typing import Any

import trio

from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.fs.requests.guard import fuse_error, unforeseen
from ttmfs.fs.requests.served import BoHandle, Served
from ttmfs.fs.requests.space_handle import SpaceHandle
from ttmfs.observe.asker import ASKER, WHY
from ttmfs.ttm import access
from ttmfs.ttm.advice import used_at_once
from ttmfs.ttm.request import trace_fault
from ttmfs.units import PAGE_MASK, PAGE_SHIFT


class DataRequests:
    """What open files hold."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.counters = served.counters
        self._handles = served.handles
        self._ttm = served.ttm

    async def read(self, fh: int, off: int, size: int) -> Any:
        """A fault of every page named."""
        handle = self._handles.get(fh)
        counters = self.counters
        try:
            if type(handle) is BoHandle:
                bo = handle.bo
                counters.read += 1
                view = bo.vmap
                if view is not None and not bo.resv.locked:
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
                    counters.read_bytes += length
                    if bo.adviser is not None:
                        used_at_once(bo, "read", off, length)
                    return data
                ASKER.set(handle.pid)
                WHY.set(f"READ of {bo.name}")
                slow = await access.read(bo, off, size)
                counters.read_bytes += len(slow)
                return slow
            if type(handle) is SpaceHandle:
                ASKER.set(handle.pid)
                WHY.set("READ of an address space")
                return await handle.read(off, size)
            return await self.served.virtual(fh).read(off, size)
        except OSError as error:
            if type(handle) is BoHandle:
                self.served.failed(handle.bo.name, "READ", error, handle.file.uid)
            raise fuse_error(error, counters, "read") from None
        except (Exception, BaseExceptionGroup):
            raise unforeseen(counters, "read") from None

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Bytes from a pwrite or from writeback of a mapping: they look alike."""
        handle = self._handles.get(fh)
        counters = self.counters
        try:
            if type(handle) is BoHandle:
                bo = handle.bo
                counters.write += 1
                handle.file.written = True
                handle.file.shown = NOT_SHOWN  # the kernel asks again after its own WRITEs
                view = bo.vmap
                end = off + len(buf)
                if view is not None and end <= bo.size:
                    view[off:end] = buf
                    bo.handed_out = True
                    used_at_once(bo, "write", off, len(buf))
                    if bo.dirty is not None:
                        bo.dirty.wrote(off >> PAGE_SHIFT, (end + PAGE_MASK) >> PAGE_SHIFT)
                else:
                    ASKER.set(handle.pid)
                    WHY.set(f"WRITE of {bo.name}")
                    await access.write(bo, off, buf)
                counters.write_bytes += len(buf)
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
        except OSError as error:
            if type(handle) is BoHandle:
                counters.write_errors += 1
                handle.file.write_failed = True
                self.served.failed(handle.bo.name, "WRITE", error, handle.file.uid)
            raise fuse_error(error, counters, "write") from None
        except (Exception, BaseExceptionGroup):
            counters.write_errors += type(handle) is not SpaceHandle  # that one counts its own
            raise unforeseen(counters, "write") from None

    async def read_traced(self, fh: int, off: int, size: int) -> Any:
        """As `read`; records those that it answers from a view, the others are recorded where they are served."""
        handle = self._handles.get(fh)
        if type(handle) is not BoHandle or handle.bo.vmap is None or handle.bo.resv.locked:
            return await self.read(fh, off, size)
        started = time.monotonic_ns()
        data = await self.read(fh, off, size)
        trace_fault(handle.bo, off, len(data), started)
        return data
