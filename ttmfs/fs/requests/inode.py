"""InodeRequests: GETATTR, SETATTR (truncate is one), statfs and extended attributes."""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

import pyfuse3

from ttmfs import clock
from ttmfs.driver.entries import Entry, File, Folder
from ttmfs.driver.names import NAME_MAX
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError
from ttmfs.fs.requests.guard import at_once, guarded
from ttmfs.fs.requests.replies import Replies
from ttmfs.fs.requests.served import Served
from ttmfs.fs.tree import attributes
from ttmfs.fs.tree.made import MadeDir
from ttmfs.fs.tree.nodes import VirtualFile
from ttmfs.svm.names import SpaceFile
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.units import PAGE_SIZE

_MAX_FILES: Final = 1 << 32
"""As many as statfs says there may be; nothing but memory limits them."""
_XATTR: Final = b"user.ttm."


class InodeRequests:
    """What is asked about an inode, or changed of it, without opening it."""

    def __init__(self, served: Served, replies: Replies) -> None:
        self.served = served
        self._replies = replies
        self.counters = served.counters

    @at_once
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR. mtime is constant while clients write, or every stat would drop the page cache (H25).

        Who changes what these say by other ways than the client's own requests says so to the AttributeCache.
        """
        node = self.served.inodes.get(inode)
        if isinstance(node, VirtualFile):
            return await self._virtual_attributes(node, ctx)
        return self._replies.attributes(node, inode)

    @guarded
    async def _virtual_attributes(self, node: VirtualFile, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._replies.attributes(node, self.served.inodes.number(node), await node.length())

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
        node = self.served.inodes.get(inode)
        if isinstance(node, MadeDir):
            mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else None
            uid, gid = (attr.st_uid if fields.update_uid else None), (attr.st_gid if fields.update_gid else None)
            node.delegate(mode, uid, gid)
            return self._replies.attributes(node, inode)
        if not isinstance(node, Entry):
            # Shells truncate what they redirect into; touch does no harm.
            if fields.update_mode or fields.update_uid or fields.update_gid:
                raise TtmError(errno.EPERM, "commands and attributes have the owner of their BO, or of the mount")
            if isinstance(node, VirtualFile):
                return await self._virtual_attributes(node, ctx)
            return self._replies.attributes(node, inode)
        if fields.update_size:
            if not isinstance(node, (BoFile, SpaceFile)):
                raise TtmError(errno.EISDIR if isinstance(node, Folder) else errno.EINVAL, "only files have a size")
            set_size(self.served, node, attr.st_size)
        if fields.update_mode:
            node.set_mode(stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode))
        if fields.update_uid:
            node.uid = attr.st_uid
            if isinstance(node, (BoFile, SpaceFile)):
                node.pay(self.served.tree.machine.vdev.ttm.accounts.of(node.uid))
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime = attr.st_atime_ns
        if fields.update_mtime:
            await self._set_mtime(node, attr.st_mtime_ns)
        node.ctime = clock.wall_ns()
        return self._replies.attributes(node, inode)

    async def _set_mtime(self, node: Entry, mtime: int) -> None:
        """utimens: it is the time of all that was written before, also through mappings: what of that is still in the
        page cache comes first, or it would move mtime once more when it comes. (A WRITE is no SETATTR of a size: R5.)
        """
        if isinstance(node, File):
            if node.write_opens and self.served.tree.page_cache is not None:
                await self.served.tree.page_cache.write_back(node.ino)
            node.written = False
        node.mtime = mtime

    @at_once
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Memory: what BOs hold, and what a growing BO can take, pages that are kept ready in the pool included."""
        pool = self.served.machine.vdev.pool
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = PAGE_SIZE
        data.f_blocks = pool.arena.num_pages
        data.f_bfree = data.f_bavail = pool.arena.num_pages - pool.in_use_pages
        used = len(self.served.names.files) + len(self.served.spaces.files)
        data.f_files = _MAX_FILES
        data.f_ffree = data.f_favail = _MAX_FILES - used
        data.f_namemax = NAME_MAX
        return data

    # -- extended attributes -------------------------------------------------------------------------------------

    def _bo_file(self, inode: int) -> BoFile:
        node = self.served.inodes.get(inode)
        if not isinstance(node, BoFile):
            raise TtmError(errno.EOPNOTSUPP, "only BO files have extended attributes")
        return node

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """user.ttm.KEY: the values of `status`."""
        if not name.startswith(_XATTR):
            # Before each write(2) the kernel asks for security.capability: part of the cost of every small write.
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return await self._status_value(inode, name)

    @at_once
    async def _status_value(self, inode: int, name: bytes) -> bytes:
        key = os.fsdecode(name[len(_XATTR) :])
        bo = self._bo_file(inode).bo
        values = attributes.status(self.served.machine.vdev, bo)
        if key not in values:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return attributes.text_of(key, values[key]).encode("utf-8", "surrogateescape")

    @at_once
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """All of them."""
        node = self.served.inodes.get(inode)
        if not isinstance(node, BoFile):
            return []
        return [_XATTR + key.encode() for key in attributes.status(self.served.machine.vdev, node.bo)]

    @at_once
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        """The read-write attributes."""
        if not name.startswith(_XATTR):
            raise TtmError(errno.EOPNOTSUPP, "only user.ttm.* exist here")
        file = self._bo_file(inode)
        bo, key = file.bo, os.fsdecode(name[len(_XATTR) :])
        with self.served.tree.runner.error_log.watching(f"{bo.name} user.ttm.{key}", ctx.uid):
            attributes.set_text(self.served.machine.vdev, bo, key, value.decode("utf-8", "surrogateescape"))
        file.ctime = clock.wall_ns()

    @at_once
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """What there is are facts, which cannot be removed."""
        if name not in await self.listxattr(inode, ctx):
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        raise TtmError(errno.EPERM, "user.ttm.* cannot be removed")


def set_size(served: Served, file: BoFile | SpaceFile, size: int) -> None:
    """Truncate, at once; the times move also when the size stays. TtmError: EFBIG, EPERM for an imported BO."""
    of = file.space if isinstance(file, SpaceFile) else file.bo
    try:
        if isinstance(of, BufferObject):
            lifetime.set_size(of, size)
        else:
            of.set_size(size)
    except TtmError as error:
        name = of.name if isinstance(of, BufferObject) else f"svm/{of.name}"
        served.failed(name, "SETATTR", error, file.uid)
        raise
    file.mtime = file.ctime = clock.wall_ns()
