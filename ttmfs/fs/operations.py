"""Operations: the FUSE requests of one mount, handed on to BO files, svm files, folders and virtual nodes.

READ and WRITE of BO files come first, because they are the faults: whatever can be answered at once is, without an
await between the last check and the reply.
"""

import errno
import os
import select
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Final

import pyfuse3
import trio

from ttmfs.driver.namespace import NAME_MAX, BoFile, Entry, Folder, Namespace
from ttmfs.errors import TtmError
from ttmfs.fs import attributes
from ttmfs.fs.guard import fuse_error, guarded, unforeseen
from ttmfs.fs.inodes import Inodes
from ttmfs.fs.nodes import Handle, Node, VirtualDir, VirtualFile
from ttmfs.fs.svmhandle import SpaceHandle
from ttmfs.fs.svmnames import SpaceFile, SpaceNames
from ttmfs.fs.tracepipe import READABLE, PipeFile, PipeHandle
from ttmfs.fs.tree import Tree
from ttmfs.ttm import access
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.unmap import unmap_virtual
from ttmfs.units import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

LONG_TIMEOUT: Final = 300.0
"""Seconds that the kernel may trust names and attributes below bo/: only requests that it sent change them."""

ALIAS_PREFIX: Final = b".ttmfs-ino-"
"""Names in the root that open a BO by inode number; only the daemon's own threads may look them up."""

MAX_FILE_SIZE: Final = 1 << 46
ALWAYS_READY: Final = READABLE | select.POLLOUT | select.POLLWRNORM
_XATTR: Final = b"user.ttm."


class BoHandle:
    """An open BO file."""

    __slots__ = ("bo", "file", "own", "writes")

    def __init__(self, file: BoFile, *, writes: bool, own: bool) -> None:
        self.file = file
        self.bo: BufferObject = file.bo
        self.writes = writes
        self.own = own
        """Opened by the daemon itself, to flush it."""


class TtmOperations(pyfuse3.Operations):
    """Serves one Tree. `set_read_ahead(kb)` is called just before an OPEN is answered."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, tree: Tree, set_read_ahead: Callable[[int], object]) -> None:
        super().__init__()
        self.tree = tree
        self.machine = tree.machine
        self.names = tree.machine.names
        self.spaces = tree.spaces
        self.ttm = tree.machine.vdev.ttm
        self.counters = self.ttm.counters.requests
        self.inodes = Inodes(tree.root)
        self.set_read_ahead = set_read_ahead
        self.closing = False
        self._handles: dict[int, BoHandle | SpaceHandle | Handle | list[tuple[bytes, Node]]] = {}
        self._next_handle = count(1)
        self.ttm.trace.watch(self._trace_switched)

    # -- READ and WRITE ------------------------------------------------------------------------------------------

    async def read(self, fh: int, off: int, size: int) -> Any:
        """A fault of every page named."""
        handle = self._handles.get(fh)
        counters = self.counters
        try:
            if type(handle) is BoHandle:
                bo = handle.bo
                counters.read += 1
                view = bo.fast
                if view is not None and not bo.resv.locked:
                    data = view[off : off + size]
                    length = len(data)
                    pages = (length + 4095) >> PAGE_SHIFT
                    faults = self.ttm.counters.faults
                    faults.count += 1
                    faults.pages += pages
                    bo.faults += 1
                    bo.fault_pages += pages
                    bo.handed_out = True
                    if off + length >= bo.size:
                        bo.eof_page_read = True
                    counters.read_bytes += length
                    return data
                slow = await access.read(bo, off, size)
                counters.read_bytes += len(slow)
                return slow
            if type(handle) is SpaceHandle:
                return await handle.read(off, size)
            return await self._virtual(fh).read(off, size)
        except OSError as error:
            if type(handle) is BoHandle:
                self._failed(handle.bo.name, "READ", error)
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
                view = bo.fast
                end = off + len(buf)
                if view is not None and end <= bo.size:
                    view[off:end] = buf
                    bo.handed_out = True
                    if bo.dirty is not None:
                        bo.dirty.wrote(off >> PAGE_SHIFT, (end + PAGE_MASK) >> PAGE_SHIFT)
                else:
                    await access.write(bo, off, buf)
                counters.write_bytes += len(buf)
                return len(buf)
            if type(handle) is SpaceHandle:
                return await handle.write(off, buf)
            with trio.CancelScope(shield=True):
                written = await self._virtual(fh).write(off, buf)
            return written
        except OSError as error:
            if type(handle) is BoHandle:
                counters.write_errors += 1
                self._failed(handle.bo.name, "WRITE", error)
            raise fuse_error(error, counters, "write") from None
        except (Exception, BaseExceptionGroup):
            counters.write_errors += type(handle) is not SpaceHandle  # that one counts its own
            raise unforeseen(counters, "write") from None

    def _trace_switched(self) -> None:
        """While faults are traced another handler answers READs, so that tracing that is off costs them nothing."""
        if self.ttm.trace.wants("fault"):
            self.read = self._read_traced  # type: ignore[method-assign]
        else:
            self.__dict__.pop("read", None)

    async def _read_traced(self, fh: int, off: int, size: int) -> Any:
        """As `read`; records those that it answers from a view, the others are recorded where they are served."""
        handle = self._handles.get(fh)
        if type(handle) is not BoHandle or handle.bo.fast is None or handle.bo.resv.locked:
            return await TtmOperations.read(self, fh, off, size)
        started = time.monotonic_ns()
        data = await TtmOperations.read(self, fh, off, size)
        access.trace_fault(handle.bo, off, len(data), started)
        return data

    def _failed(self, name: str, what: str, error: OSError) -> None:
        self.tree.runner.error_log.add(f"{what} {name}", error)
        if self.ttm.trace.on:
            self.ttm.trace.emit("error", name, request=what, errno=error.errno, why=error.strerror)

    def _virtual(self, fh: int) -> Handle:
        handle = self._handles.get(fh)
        if handle is None or isinstance(handle, (BoHandle, SpaceHandle, list)):
            raise TtmError(errno.EBADF, "no such handle")
        return handle

    # -- attributes ----------------------------------------------------------------------------------------------

    def _attributes(self, node: Node, ino: int) -> pyfuse3.EntryAttributes:
        attr = pyfuse3.EntryAttributes()
        attr.st_ino = pyfuse3.InodeT(ino)
        attr.st_mode = pyfuse3.ModeT(node.mode)
        attr.st_uid = node.uid
        attr.st_gid = node.gid
        attr.st_blksize = PAGE_SIZE
        if isinstance(node, Entry):
            attr.entry_timeout = attr.attr_timeout = LONG_TIMEOUT
            attr.st_atime_ns, attr.st_mtime_ns, attr.st_ctime_ns = node.atime, node.mtime, node.ctime
            if isinstance(node, BoFile):
                attr.st_size = node.bo.size
                attr.st_blocks = _blocks(node.bo)
                attr.st_nlink = 0 if node.unlinked else 1
                return attr
            if isinstance(node, SpaceFile):
                attr.st_size = node.space.size
                attr.st_blocks = node.space.num_blocks() * (PAGE_SIZE // 512)
                attr.st_nlink = 0 if node.unlinked else 1
                return attr
        else:
            attr.entry_timeout = attr.attr_timeout = 0
            attr.st_atime_ns = attr.st_mtime_ns = attr.st_ctime_ns = self.names.root.ctime
        attr.st_nlink = 2 if stat.S_ISDIR(node.mode) else 1
        attr.st_size = 0
        attr.st_blocks = 0
        return attr

    def _reply(self, node: Node, ino: int | None = None) -> pyfuse3.EntryAttributes:
        """Attributes for a reply that counts as a LOOKUP."""
        ino = self.inodes.number(node) if ino is None else ino
        self.inodes.looked_up(ino, node)
        return self._attributes(node, ino)

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """LOOKUP; names that do not exist are not cached by the kernel either."""
        parent = self.inodes.get(parent_inode)
        if isinstance(parent, Folder):
            return self._reply(self._names(parent).child(parent, name))
        if parent is self.tree.root:
            if name == b"bo":
                return self._reply(self.names.root)
            if name == b"svm":
                return self._reply(self.spaces.root)
            if name.startswith(ALIAS_PREFIX) and _is_own(ctx.pid):
                return self._reply_alias(name)
        node = parent.find(os.fsdecode(name)) if isinstance(parent, VirtualDir) else None
        if node is None:
            raise TtmError(errno.ENOENT, "no such file")
        return self._reply(node)

    def _reply_alias(self, name: bytes) -> pyfuse3.EntryAttributes:
        ino = int(name[len(ALIAS_PREFIX) :])
        file = self.names.files.get(ino) or self.spaces.files.get(ino)
        if file is None:
            raise TtmError(errno.ENOENT, "no such BO or address space")
        attr = self._reply(file)
        attr.entry_timeout = 0
        return attr

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET."""
        for ino, lookups in inode_list:
            self.inodes.forget(ino, lookups)

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR. mtime is constant while clients write, or every stat would drop the page cache (H25)."""
        return self._attributes(self.inodes.get(inode), inode)

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """chmod, chown, utimens and truncate. A size is applied at once: nothing here waits for a move (R5)."""
        node = self.inodes.get(inode)
        if not isinstance(node, Entry):
            # Shells truncate what they redirect into.
            return self._attributes(node, inode)
        now = time.time_ns()
        if fields.update_size:
            if not isinstance(node, (BoFile, SpaceFile)):
                raise TtmError(errno.EISDIR, "a folder has no size")
            self._set_size(node, attr.st_size)
        if fields.update_mode:
            node.set_mode(stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode))
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime = attr.st_mtime_ns
        node.ctime = now
        return self._attributes(node, inode)

    def _set_size(self, file: BoFile | SpaceFile, size: int) -> None:
        if isinstance(file, SpaceFile):
            if size != file.space.size:
                file.space.set_size(size)
                file.mtime = time.time_ns()
            return
        if size > MAX_FILE_SIZE:
            raise TtmError(errno.EFBIG, f"a BO has at most {MAX_FILE_SIZE} bytes")
        if size != file.bo.size:
            self.ttm.set_size(file.bo, size)
            file.mtime = time.time_ns()

    # -- names ---------------------------------------------------------------------------------------------------

    def _folder(self, inode: int) -> Folder:
        node = self.inodes.get(inode)
        if not isinstance(node, Folder):
            raise TtmError(errno.EPERM, "BOs and folders are made below bo/ only, address spaces in svm/")
        return node

    def _names(self, folder: Folder) -> Namespace | SpaceNames:
        return self.spaces if folder is self.spaces.root else self.names

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """A new BO or address space, opened."""
        self._check_open()
        folder = self._folder(parent_inode)
        file = self._create(folder, name, mode, ctx)
        return self._open_file(file, flags, ctx), self._reply(file)

    def _create(self, folder: Folder, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> BoFile | SpaceFile:
        file = self._names(folder).create(folder, name, mode & ~ctx.umask, ctx.uid, ctx.gid)
        if isinstance(file, BoFile):
            self.names.clients.adopt(file, ctx.pid)
        return file

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Regular files only."""
        if not stat.S_ISREG(mode):
            raise TtmError(errno.EPERM, "a BO is a regular file")
        folder = self._folder(parent_inode)
        return self._reply(self._create(folder, name, mode, ctx))

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A folder of BOs."""
        folder = self._folder(parent_inode)
        return self._reply(self._names(folder).mkdir(folder, name, mode & ~ctx.umask, ctx.uid, ctx.gid))

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """The BO or address space lives on while it is open or mapped."""
        folder = self._folder(parent_inode)
        self._names(folder).unlink(folder, name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """An empty folder."""
        folder = self._folder(parent_inode)
        self._names(folder).rmdir(folder, name)

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """rename(2), RENAME_NOREPLACE, RENAME_EXCHANGE."""
        old, new = self._folder(parent_inode_old), self._folder(parent_inode_new)
        names = self.spaces if self.spaces.root in (old, new) else self.names
        if flags == pyfuse3.RENAME_EXCHANGE:
            names.exchange(old, name_old, new, name_new)
        elif flags in (0, pyfuse3.RENAME_NOREPLACE):
            names.rename(old, name_old, new, name_new, replace=flags == 0)
        else:
            raise TtmError(errno.EINVAL, f"rename flags {flags} are not supported")

    # -- open, release -------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closing:
            raise TtmError(errno.ESHUTDOWN, "the mount is being taken down")

    def _new_handle(self, handle: "BoHandle | SpaceHandle | Handle | list[tuple[bytes, Node]]") -> int:
        fh = next(self._next_handle)
        self._handles[fh] = handle
        return fh

    def _open_file(self, file: BoFile | SpaceFile, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        own = _is_own(ctx.pid)
        file.opens += 1
        file.write_opens += writes
        handle: BoHandle | SpaceHandle
        if isinstance(file, SpaceFile):
            handle = SpaceHandle(
                file, self.counters, self._failed, self.tree.page_cache, writes=writes, own=own
            )
            file.client_opens += not own
            # A read ahead would be a touch of ranges that nobody has asked for.
            read_ahead = 0
        else:
            handle = BoHandle(file, writes=writes, own=own)
            read_ahead = max(file.bo.prefault, 1) * PAGE_SIZE >> 10
        if not own:
            self.set_read_ahead(read_ahead)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(self._new_handle(handle)))

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """O_TRUNC arrives here, not as a SETATTR."""
        self._check_open()
        node = self.inodes.get(inode)
        if isinstance(node, BoFile):
            if flags & os.O_TRUNC:
                # Unlike a SETATTR, an OPEN holds no writeback back: a WRITE of old bytes that is under way would
                # arrive after the truncate and make the file grow again. INVAL waits for it.
                await unmap_virtual(node.bo)
                self._set_size(node, 0)
            return self._open_file(node, flags, ctx)
        if isinstance(node, SpaceFile):
            if flags & os.O_TRUNC:
                if self.tree.page_cache is not None:
                    await self.tree.page_cache.invalidate(node.ino)
                self._set_size(node, 0)
            return self._open_file(node, flags, ctx)
        if not isinstance(node, VirtualFile):
            raise TtmError(errno.EISDIR, "a folder cannot be opened as a file")
        if flags & os.O_ACCMODE != os.O_RDONLY and not node.mode & 0o222:
            raise TtmError(errno.EACCES, "this file is read-only")
        fh = self._new_handle(node.open(ctx.pid, flags))
        stream = isinstance(node, PipeFile)
        return pyfuse3.FileInfo(
            fh=pyfuse3.FileHandleT(fh), direct_io=True, keep_cache=False, nonseekable=stream
        )

    @guarded
    async def flush(self, fh: int) -> None:
        """close(2): what was written through it shows in mtime now."""
        handle = self._handles.get(fh)
        if isinstance(handle, (BoHandle, SpaceHandle)):
            await self._touch(handle)

    async def _touch(self, handle: BoHandle | SpaceHandle) -> None:
        """Move mtime if there were WRITEs, and have the kernel ask for it: it may have looked since the last one."""
        if handle.file.written and not handle.own:
            handle.file.written = False
            handle.file.mtime = handle.file.ctime = time.time_ns()
            if self.tree.page_cache is not None:
                await self.tree.page_cache.invalidate(handle.file.ino, -1)

    @guarded
    async def release(self, fh: int) -> None:
        """The last descriptor and the last mapping are gone."""
        handle = self._handles.pop(fh, None)
        if isinstance(handle, (BoHandle, SpaceHandle)):
            await self._touch(handle)
            handle.file.opens -= 1
            handle.file.write_opens -= handle.writes
            if isinstance(handle, SpaceHandle):
                handle.file.client_opens -= not handle.own
                self.spaces.drop_if_unused(handle.file)
            else:
                self.names.drop_if_unused(handle.file)
        elif isinstance(handle, PipeHandle):
            handle.close()

    @guarded
    async def poll(
        self, inode: int, fh: int, poll_handle: "pyfuse3.PollHandle | None", ctx: pyfuse3.RequestContext
    ) -> int:
        """poll(2) and its like: everything is always ready but trace_pipe."""
        handle = self._handles.get(fh)
        return handle.poll(poll_handle) if isinstance(handle, PipeHandle) else ALWAYS_READY

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """The kernel has sent its WRITEs; there is no medium behind a BO."""

    # -- directories ---------------------------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """A listing is a snapshot of the names."""
        node = self.inodes.get(inode)
        if not isinstance(node, (Folder, VirtualDir)):
            raise TtmError(errno.ENOTDIR, "not a folder")
        return self._new_handle(list(self._children(node)))

    def _children(self, node: Folder | VirtualDir) -> Iterator[tuple[bytes, Node]]:
        if isinstance(node, Folder):
            yield from node.children.items()
            return
        folders = {"bo": self.names.root, "svm": self.spaces.root} if node is self.tree.root else {}
        for name in node.names():
            child: Node | None = folders.get(name) or node.find(name)
            if child is not None:
                yield os.fsencode(name), child

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS."""
        children = self._handles.get(fh)
        if not isinstance(children, list):
            raise TtmError(errno.EBADF, "no such handle")
        for index in range(start_id, len(children)):
            name, node = children[index]
            ino = self.inodes.number(node)
            if not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), self._attributes(node, ino), index + 1
            ):
                return
            self.inodes.looked_up(ino, node)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Forget the snapshot."""
        self._handles.pop(fh, None)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """The system arena: what a growing BO can take."""
        pool = self.machine.vdev.pool
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = PAGE_SIZE
        data.f_blocks = pool.arena.num_pages
        data.f_bfree = data.f_bavail = pool.free_pages
        data.f_files = len(self.names.files) + len(self.spaces.files)
        data.f_ffree = data.f_favail = (1 << 32) - data.f_files
        data.f_namemax = NAME_MAX
        return data

    # -- extended attributes -------------------------------------------------------------------------------------

    def _bo_file(self, inode: int) -> BoFile:
        node = self.inodes.get(inode)
        if not isinstance(node, BoFile):
            raise TtmError(errno.EOPNOTSUPP, "only BO files have extended attributes")
        return node

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """user.ttm.KEY: the values of `status`."""
        if not name.startswith(_XATTR):
            # Before each write(2) the kernel asks for security.capability: part of the cost of every small write.
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return await self._status_value(inode, name)

    @guarded
    async def _status_value(self, inode: int, name: bytes) -> bytes:
        key = os.fsdecode(name[len(_XATTR) :])
        bo = self._bo_file(inode).bo
        values = attributes.status(bo)
        if key not in values:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return attributes.text_value(values[key]).encode("utf-8", "surrogateescape")

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """All of them."""
        node = self.inodes.get(inode)
        if not isinstance(node, BoFile):
            return []
        return [_XATTR + key.encode() for key in attributes.status(node.bo)]

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """The read-write attributes."""
        if not name.startswith(_XATTR):
            raise TtmError(errno.EOPNOTSUPP, "only user.ttm.* exist here")
        bo = self._bo_file(inode).bo
        key = os.fsdecode(name[len(_XATTR) :])
        attributes.set_text(self.machine.vdev, bo, key, value.decode("utf-8", "surrogateescape"))

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """They are facts, they cannot be removed."""
        raise TtmError(errno.EPERM, "user.ttm.* cannot be removed")


def _is_own(pid: int) -> bool:
    """Is this the id of one of the daemon's own threads?"""
    return os.path.exists(f"/proc/self/task/{pid}")


def _blocks(bo: BufferObject) -> int:
    """512-byte blocks that the BO's memory takes."""
    pages = bo.tt.populated_pages if bo.tt is not None else 0
    if bo.resource is not None and bo.resource.pages is not None:
        pages += bo.resource.num_pages
    return pages * (PAGE_SIZE // 512)
