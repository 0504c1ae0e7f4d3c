"""SpaceHandle: an open svm file; its READs and WRITEs go to the address space.

Every READ is a CPU touch of the pages it names, every WRITE a pwrite or the writeback of a mapping. Both are counted,
listed while they wait, and logged when they fail, as those of BO files are. AddressSpace.read and write shield their
waits from cancellation themselves: a scope here would cost more than a fault that waits for nothing.
"""

import time
from collections.abc import Callable

from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.observe import points
from ttmfs.observe.counters import RequestCounters
from ttmfs.svm import cpu
from ttmfs.svm.names import SpaceFile
from ttmfs.ttm.at_once import Buffer
from ttmfs.ttm.request import list_waiting
from ttmfs.units import PAGE_MASK, PAGE_SHIFT


class SpaceHandle:
    """One open file of a space. `failed(space name, request, error)` is told about every error."""

    __slots__ = ("_counters", "_failed", "file", "own", "pid", "writes")

    def __init__(
        self,
        file: SpaceFile,
        counters: RequestCounters,
        failed: Callable[[str, str, OSError, int], None],
        *,
        pid: int,
        writes: bool,
        own: bool,
    ) -> None:
        self.file = file
        self._counters = counters
        self._failed = failed
        self.pid = pid
        """Who has opened it."""
        self.writes = writes
        self.own = own
        """Opened by the daemon itself, to flush it."""

    async def read(self, offset: int, size: int) -> Buffer:
        """Exactly min(size, end - offset) bytes, to be handed on before the next await. TtmError EIO, ENOMEM."""
        counters, space = self._counters, self.file.space
        counters.read += 1
        started = time.monotonic_ns()
        list_waiting(space.vdev.ttm, request := cpu.waiting_for(space), started)
        try:
            data = await cpu.read(space, offset, size, request) if offset < space.size else b""
        except OSError as error:
            self._failed(f"svm/{space.name}", "READ", error, self.file.uid)
            raise
        finally:
            del counters.parked[request]
        counters.read_bytes += len(data)
        pages = (len(data) + PAGE_MASK) >> PAGE_SHIFT
        spent = (time.monotonic_ns() - started) // 1000
        points.svm_cpu_fault(space.vdev.ttm.trace, space, offset=offset, pages=pages, latency_us=spent)
        return data

    async def write(self, offset: int, data: bytes) -> int:
        """All of `data`, growing the space if it ends behind it. TtmError EFBIG, ENOMEM, EIO."""
        counters, file = self._counters, self.file
        space = file.space
        counters.write += 1
        file.written = True
        file.shown = NOT_SHOWN
        list_waiting(space.vdev.ttm, request := cpu.waiting_for(space), time.monotonic_ns())
        try:
            await cpu.write(space, offset, data, request)
        except OSError as error:
            counters.write_errors += 1
            file.write_failed = True
            self._failed(f"svm/{space.name}", "WRITE", error, file.uid)
            raise
        except (Exception, BaseExceptionGroup):
            counters.write_errors += 1
            raise
        finally:
            del counters.parked[request]
        counters.write_bytes += len(data)
        return len(data)
