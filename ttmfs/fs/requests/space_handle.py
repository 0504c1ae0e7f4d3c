"""SpaceHandle: an open svm file; its READs and WRITEs go to the address space.

Every READ is a CPU touch of the pages it names, every WRITE a pwrite or the writeback of a mapping. Both are counted,
listed while they wait, and logged when they fail, as those of BO files are. AddressSpace.read and write shield their
waits from cancellation themselves: a scope here would cost more than a fault that waits for nothing.
"""

import time
from collections.abc import Callable
from typing import Final

import trio

from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.errors import TtmError
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.observe import points
from ttmfs.observe.counters import RequestCounters
from ttmfs.svm import cpu
from ttmfs.svm.names import SpaceFile
from ttmfs.ttm.access import Buffer
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

EOF_INVAL_SECONDS: Final = 0.005
"""A page that was not up to date is locked by the very WRITE being served: its INVAL ends after the reply."""


class SpaceHandle:
    """One open file of a space. `failed(space name, request, error)` is told about every error."""

    __slots__ = ("_counters", "_failed", "_page_cache", "file", "own", "pid", "writes")

    def __init__(
        self,
        file: SpaceFile,
        counters: RequestCounters,
        failed: Callable[[str, str, OSError, int], None],
        page_cache: PageCache | None,
        *,
        pid: int,
        writes: bool,
        own: bool,
    ) -> None:
        self.file = file
        self._counters = counters
        self._failed = failed
        self._page_cache = page_cache
        self.pid = pid
        """Who has opened it."""
        self.writes = writes
        self.own = own
        """Opened by the daemon itself, to flush it."""

    async def read(self, offset: int, size: int) -> Buffer:
        """Exactly min(size, end - offset) bytes, to be handed on before the next await. TtmError EIO, ENOMEM."""
        counters, space = self._counters, self.file.space
        counters.read += 1
        counters.parked[token := object()] = started = time.monotonic_ns()
        try:
            data = await cpu.read(space, offset, size) if offset < space.size else b""
        except OSError as error:
            self._failed(f"svm/{space.name}", "READ", error, self.file.uid)
            raise
        finally:
            del counters.parked[token]
        if offset + len(data) >= space.size:
            self.file.eof_page_read = True
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
        old_size = space.size
        counters.parked[token := object()] = time.monotonic_ns()
        try:
            await cpu.write(space, offset, data)
            if offset + len(data) > old_size and old_size & PAGE_MASK:
                await self._drop_eof_page(old_size)
        except OSError as error:
            counters.write_errors += 1
            self._failed(f"svm/{space.name}", "WRITE", error, file.uid)
            raise
        except (Exception, BaseExceptionGroup):
            counters.write_errors += 1
            raise
        finally:
            del counters.parked[token]
        counters.write_bytes += len(data)
        return len(data)

    async def _drop_eof_page(self, old_size: int) -> None:
        """See ttmfs.ttm.eof: writeback of that page may have zeroed, in the cache, what this WRITE has brought."""
        page_cache, file = self._page_cache, self.file
        if page_cache is None or not file.eof_page_read:
            return
        file.eof_page_read = False
        done = trio.Event()

        async def drop() -> None:
            try:
                await page_cache.invalidate(file.ino, old_size & ~PAGE_MASK, PAGE_SIZE, flush=False)
            except TtmError:
                pass  # the connection is gone, and the cache with it
            finally:
                done.set()

        trio.lowlevel.spawn_system_task(drop)
        with trio.CancelScope(shield=True), trio.move_on_after(EOF_INVAL_SECONDS):
            await done.wait()
