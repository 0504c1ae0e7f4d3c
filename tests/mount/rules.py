"""Named patches that take one rule of the design out of a daemon under test.

Each exists to show that a test of the rule is able to fail: with the rule removed, the same scenario hangs or loses
bytes.
"""

import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pyfuse3
from trio._core import _thread_cache

from ttmfs.driver import policy
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
from ttmfs.fs import mount as mount_module
from ttmfs.fs.kernel import session_loop, tuning
from ttmfs.fs.kernel.inval import SessionFd
from ttmfs.fs.kernel.unmappers import BoPageCache
from ttmfs.fs.requests import open as open_module
from ttmfs.fs.requests.guard import guarded
from ttmfs.fs.requests.inode import InodeRequests
from ttmfs.fs.requests.read_write import DataRequests
from ttmfs.memory.stores import FileStore
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, at_once, fault
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.gate import Gate
from ttmfs.ttm.request import Request


def without_r1() -> None:
    """Requests wait for reservation and fences also while an INVAL of their BO is outstanding."""
    Gate.unmapping = property(lambda self: False)
    Gate.unmaps = lambda self, first, count: False
    Gate.wake = lambda self, pages=None: None


def without_wake() -> None:
    """R1, the half about requests that were parked before the INVAL began."""
    Gate.wake = lambda self, pages=None: None


def without_r2() -> None:
    """A move inside a fault of the BO itself INVALs it like any other."""

    def context(*, faulting: object = None, **more: Any) -> OperationContext:
        del faulting
        return OperationContext(**more)

    policy.OperationContext = context
    fault.OperationContext = context
    Gate._check_own = lambda self, pages: None


def without_r4_running() -> None:
    """A WRITE goes to the source also while its bytes are being moved."""
    real = at_once.try_write

    def try_write(bo: BufferObject, offset: int, data: bytes) -> bool:
        return at_once.scatter_now(bo, offset, data) if bo.copies else real(bo, offset, data)

    at_once.try_write = try_write


def without_r4_queued() -> None:
    """A WRITE waits for a copy that has not begun, as a READ does."""
    real = access.write

    async def write(bo: BufferObject, offset: int, data: bytes) -> int:
        await bo.resv.wait(Usage.KERNEL)
        return await real(bo, offset, data)

    access.write = write
    access.write_at_once = lambda *_: False


def without_r5() -> None:
    """SETATTR waits for the reservation."""
    real: Callable[..., Coroutine[Any, Any, Any]] = InodeRequests.setattr

    async def setattr_(self: InodeRequests, inode: int, *rest: Any) -> Any:
        node = self.served.inodes.get(inode)
        if isinstance(node, BoFile):
            await node.bo.resv.lock()
            node.bo.resv.unlock()
        return await real(self, inode, *rest)

    InodeRequests.setattr = guarded(setattr_)


def without_background_limits() -> None:
    """R8: max_background and congestion_threshold stay as FUSE sets them."""
    real = tuning.raise_background_limits

    def nothing(connection: int) -> Any:
        result = real(connection)
        for name, value in (("max_background", 12), ("congestion_threshold", 9)):
            with open(f"/sys/fs/fuse/connections/{connection}/{name}", "w", encoding="ascii") as file:
                file.write(str(value))
        return result

    mount_module.tuning.raise_background_limits = nothing


def max_tasks(count: str) -> None:
    """H8: so many requests under way at once and no more."""
    mount_module.MAX_TASKS = int(count)


def without_hurry() -> None:
    """H8: however many requests wait, they go on waiting."""
    Request.hurry = lambda self: None


def texts_limit(size: str) -> None:
    """Of texts that nobody closes so many bytes are kept."""
    open_module.TEXTS_LIMIT = int(size)


def no_threads_while(path: str) -> None:
    """The host gives no more threads as long as this file is there; those of trio that are idle end at once."""
    real = threading.Thread.start

    def start(self: threading.Thread) -> None:
        if os.path.exists(path):
            raise RuntimeError("can't start new thread")
        real(self)

    threading.Thread.start = start
    _thread_cache.IDLE_TIMEOUT = 0.001


def moving_mtime() -> None:
    """H25: every WRITE moves st_mtime."""
    real: Callable[..., Awaitable[int]] = DataRequests.write

    async def write(self: DataRequests, fh: int, off: int, buf: bytes) -> int:
        written = await real(self, fh, off, buf)
        handle: Any = self._handles.get(fh)
        if hasattr(handle, "file"):
            handle.file.mtime += 1_000_000
        return written

    DataRequests.write = write
    DataRequests.write_at_once = lambda *_: False


def short_reads() -> None:
    """H5: READs of more than a page are answered with half."""
    real: Callable[..., Awaitable[Any]] = DataRequests.read

    async def read(self: DataRequests, fh: int, off: int, size: int) -> Any:
        data = await real(self, fh, off, size)
        return data[: len(data) // 2] if len(data) > 4096 else data

    DataRequests.read = read
    DataRequests._read_at_once = lambda *_: None


def without_guard() -> None:
    """R9: exceptions leave the handlers as they are."""

    async def bare(self: InodeRequests, ctx: pyfuse3.RequestContext) -> Any:
        raise ValueError("made to fail")

    InodeRequests.statfs = bare


def without_inval() -> None:
    """Moves INVAL nothing: a validate after which mapped clients go on without a fault."""
    from ttmfs.fs.kernel.unmappers import BoPageCache  # noqa: PLC0415

    async def invalidate(self: BoPageCache, bo: BufferObject, first_page: int, num_pages: int) -> None:
        """Nothing."""

    BoPageCache.invalidate = invalidate


def without_svm_inval() -> None:
    """The device uses pages of address spaces without a look at what clients have cached."""
    from ttmfs.fs.kernel.unmappers import SpacePageCache  # noqa: PLC0415

    async def invalidate(self: SpacePageCache, space: object, first_page: int, num_pages: int) -> None:
        """Nothing."""

    SpacePageCache.invalidate = invalidate


def svm_reads_ahead() -> None:
    """Files of address spaces are opened with the readahead of the others."""
    real = tuning.ReadAhead.set_read_ahead
    tuning.ReadAhead.set_read_ahead = lambda self, kb: real(self, kb or 1024)


def stall_before_write() -> None:
    """The loop stands still for a second between the GETXATTR that the kernel sends before a WRITE of the file `stall`
    and that WRITE.
    """
    real_getxattr: Callable[..., Awaitable[bytes]] = InodeRequests.getxattr
    real_wait: Callable[..., Awaitable[bool]] = session_loop._FastWait.wait
    asked: list[int] = []

    async def getxattr(self: InodeRequests, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        file = self.served.names.files.get(inode)
        if name == b"security.capability" and file is not None and file.name == b"stall":
            asked.append(inode)
        return await real_getxattr(self, inode, name, ctx)

    async def wait(self: session_loop._FastWait) -> bool:
        if asked:
            asked.clear()
            time.sleep(1.0)  # noqa: ASYNC251 - the point of it
        return await real_wait(self)

    InodeRequests.getxattr = getxattr
    session_loop._FastWait.wait = wait


def slow_store(seconds: str) -> None:
    """A swap store in a file whose disk takes this long for every step of 2 MiB."""
    real = FileStore._write

    def write(self: FileStore, *arguments: Any) -> None:
        time.sleep(float(seconds))
        real(self, *arguments)

    FileStore._write = write


def flush_in_part() -> None:
    """An INVAL of a part of a BO looks up the alias, too."""

    async def invalidate(self: BoPageCache, bo: BufferObject, first_page: int, num_pages: int) -> None:
        file = bo.private
        assert isinstance(file, BoFile)
        await self._page_cache.invalidate(file.ino, first_page << 12, num_pages << 12, flush=True)

    BoPageCache.invalidate = invalidate


def deaf_to_names() -> None:
    """The kernel takes no INVAL_ENTRY."""

    def invalidate_entry(self: SessionFd, folder_ino: int, name: bytes) -> bool:
        raise TtmError(errno.ENOMEM, "made to be deaf to names")

    SessionFd.invalidate_entry = invalidate_entry


PATCHES: dict[str, Callable[..., None]] = {
    patch.__name__: patch
    for patch in (
        without_r1,
        without_wake,
        without_r2,
        without_r4_running,
        without_r4_queued,
        without_r5,
        without_background_limits,
        max_tasks,
        without_hurry,
        texts_limit,
        no_threads_while,
        moving_mtime,
        short_reads,
        without_guard,
        without_inval,
        without_svm_inval,
        svm_reads_ahead,
        stall_before_write,
        slow_store,
        flush_in_part,
        deaf_to_names,
    )
}
