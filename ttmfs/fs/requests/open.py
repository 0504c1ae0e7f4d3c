"""OpenRequests: OPEN, FLUSH, RELEASE, poll and fsync of BO files, svm files and virtual files."""

import errno
import os
import select
from functools import partial
from typing import Final

import pyfuse3

from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
from ttmfs.fs.commands.handles import CommandHandle, TextHandle
from ttmfs.fs.commands.results import TEXTS_LIMIT, KeptResults
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.requests.guard import at_once, guarded
from ttmfs.fs.requests.inode import set_size
from ttmfs.fs.requests.served import BoHandle, Served, is_own
from ttmfs.fs.requests.space_handle import SpaceHandle
from ttmfs.fs.tree.nodes import VirtualFile
from ttmfs.fs.tree.trace_pipe import READABLE, PipeFile, PipeHandle
from ttmfs.observe.asker import asked_anew
from ttmfs.svm.names import SpaceFile
from ttmfs.ttm.ahead import give_ahead_back
from ttmfs.ttm.looking import after_stores, before_stores
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_SIZE

WORTH_COUNTING: Final = 64 << 10
"""Bytes of a text from which on it is counted for whoever has it open."""

ALWAYS_READY: Final = READABLE | select.POLLOUT | select.POLLWRNORM


class OpenRequests:
    """The life of an open file, apart from its READs and WRITEs."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.counters = served.counters
        self._texts = KeptResults(TEXTS_LIMIT)
        self._opened: dict[int, int] = {}
        """Inode numbers of virtual files, by handle."""
        self._readers: dict[int, int] = {}
        """User ids of those who have a text open that is counted, by handle."""

    async def open_file(
        self, file: BoFile | SpaceFile, flags: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        """OPEN of a BO or an address space, which may have been made for it."""
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        own = is_own(ctx.pid)
        file.opens += 1
        file.write_opens += writes
        handle: BoHandle | SpaceHandle
        if isinstance(file, SpaceFile):
            handle = SpaceHandle(file, self.counters, self.served.failed, pid=ctx.pid, writes=writes, own=own)
            file.client_opens += not own
            # A read ahead would be a touch of ranges that nobody has asked for.
            read_ahead = 0
        else:
            client = None if own else self.served.names.clients.opened(file, ctx.pid, ctx.uid)
            handle = BoHandle(file, pid=ctx.pid, writes=writes, own=own, client=client)
            read_ahead = max(file.bo.prefault, 1) * PAGE_SIZE >> 10
        fh = self.served.new_handle(handle)
        if writes:
            await self._before_stores(file)
        if not own:
            self.served.set_read_ahead(read_ahead)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh))

    @staticmethod
    async def _before_stores(file: BoFile | SpaceFile) -> None:
        """Who may store into it has been counted: zeros that were only looked at leave the caches."""
        if isinstance(file, SpaceFile):
            await before_stores(file.space, file.space.drop_looked)
        else:
            file.bo.has_writers = True
            await before_stores(file.bo, partial(unmap_virtual, file.bo))

    @staticmethod
    def _after_stores(file: BoFile | SpaceFile) -> None:
        if isinstance(file, SpaceFile):
            after_stores(file.space)
        else:
            after_stores(file.bo)
            file.bo.has_writers = False
            give_ahead_back(file.bo)

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """O_TRUNC arrives here, not as a SETATTR."""
        asked_anew(ctx.pid)
        self.served.check_open()
        node = self.served.inodes.get(inode)
        if isinstance(node, BoFile):
            if flags & os.O_TRUNC:
                # Unlike a SETATTR, an OPEN holds no writeback back: a WRITE of old bytes that is under way would
                # arrive after the truncate and make the file grow again. INVAL waits for it.
                await unmap_virtual(node.bo)
                set_size(self.served, node, 0)
            return await self.open_file(node, flags, ctx)
        if isinstance(node, SpaceFile):
            if flags & os.O_TRUNC:
                if self.served.tree.page_cache is not None:
                    await self.served.tree.page_cache.invalidate(node.ino)
                set_size(self.served, node, 0)
            return await self.open_file(node, flags, ctx)
        if not isinstance(node, VirtualFile):
            raise TtmError(errno.EISDIR, "a folder cannot be opened as a file")
        if flags & os.O_ACCMODE != os.O_RDONLY and not node.writable:
            raise TtmError(errno.EACCES, "this file is read-only")
        self.served.inodes.opened(inode)
        try:
            handle = await node.open(Opening(ctx.pid, ctx.uid, ctx.gid, flags))
            if handle.size > node.told:
                await self.served.extend(inode, handle.size)
        except BaseException:
            self.served.inodes.closed(inode)
            raise
        fh = self.served.new_handle(handle)
        self._opened[fh] = inode
        if flags & os.O_ACCMODE != os.O_RDONLY:
            self.served.openers[fh] = ctx.pid
        if isinstance(handle, TextHandle) and handle.size > WORTH_COUNTING:
            self._readers[fh] = ctx.uid
            self._texts.keep(ctx.uid, handle, handle.size)
        stream = isinstance(node, PipeFile)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), direct_io=True, keep_cache=False, nonseekable=stream)

    @guarded
    async def flush(self, fh: int) -> None:
        """close(2): what was written through it shows in mtime now, and failures that its writer was not told of."""
        handle = self.served.handles.get(fh)
        if isinstance(handle, (BoHandle, SpaceHandle)):
            await self._touch(handle)
            if handle.file.write_failed and handle.writes and not handle.own:
                await self._tell(handle.file)

    async def _tell(self, file: BoFile | SpaceFile) -> None:
        """The kernel has no failed writeback to tell of: the daemon's own descriptor may have been told before."""
        file.write_failed = False
        cache = self.served.tree.page_cache
        number = 0 if cache is None else await cache.failed_before(file.ino)
        if number:
            raise TtmError(number, f"what was stored into {file.path!r} before could not be written")

    async def _touch(self, handle: BoHandle | SpaceHandle) -> None:
        """Move mtime if there were WRITEs, and have the kernel ask for it: it may have looked since the last one."""
        if handle.file.written and not handle.own:
            handle.file.written = False
            handle.file.touch()
            await handle.file.settle()

    @guarded
    async def release(self, fh: int) -> None:
        """The last descriptor and the last mapping are gone."""
        handle = self.served.handles.get(fh)
        self.served.openers.pop(fh, None)
        if fh in self._opened:
            self.served.inodes.closed(self._opened.pop(fh))
        if isinstance(handle, (BoHandle, SpaceHandle)):
            await self._touch(handle)
        self.served.handles.pop(fh, None)
        if isinstance(handle, (BoHandle, SpaceHandle)):
            handle.file.opens -= 1
            handle.file.write_opens -= handle.writes
            if handle.writes and not handle.file.write_opens:
                self._after_stores(handle.file)
            if isinstance(handle, SpaceHandle):
                handle.file.client_opens -= not handle.own
                self.served.spaces.drop_if_unused(handle.file)
            else:
                self.served.names.clients.closed(handle.file, handle.client)
                self.served.names.drop_if_unused(handle.file)
        elif isinstance(handle, PipeHandle | CommandHandle):
            handle.close()
        elif isinstance(handle, TextHandle) and fh in self._readers:
            self._texts.drop(self._readers.pop(fh), handle)

    @at_once
    async def poll(
        self, inode: int, fh: int, poll_handle: "pyfuse3.PollHandle | None", ctx: pyfuse3.RequestContext
    ) -> int:
        """poll(2) and its like: everything is always ready but trace_pipe."""
        handle = self.served.handles.get(fh)
        return handle.poll(poll_handle) if isinstance(handle, PipeHandle) else ALWAYS_READY

    @at_once
    async def fsync(self, fh: int, datasync: bool) -> None:
        """The kernel has sent its WRITEs; there is no medium behind a BO."""
