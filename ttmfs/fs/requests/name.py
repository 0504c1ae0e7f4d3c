"""NameRequests: LOOKUP and FORGET, making, renaming and removing names."""

import errno
import os
import stat
from collections.abc import Sequence
from typing import Final

import pyfuse3

from ttmfs.driver.entries import Entry, Folder, Symlink
from ttmfs.driver.names import check_length
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.requests.guard import at_once, guarded, unforeseen
from ttmfs.fs.requests.open import OpenRequests
from ttmfs.fs.requests.replies import Replies
from ttmfs.fs.requests.served import Served, is_own
from ttmfs.fs.tree.made import MadeDir, OwnRights
from ttmfs.fs.tree.nodes import VirtualDir
from ttmfs.svm.names import SpaceFile, SpaceNames

ALIAS_PREFIX: Final = b".ttmfs-ino-"
"""Names in the root that open a BO by inode number; only the daemon's own threads may look them up."""


class NameRequests:
    """Names: those below bo/ and svm/ are files and folders, all others are made up when they are asked for."""

    def __init__(self, served: Served, replies: Replies, opens: OpenRequests) -> None:
        self.served = served
        self._replies = replies
        self._opens = opens
        self.counters = served.counters

    @at_once
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """LOOKUP; names that do not exist are not cached by the kernel either."""
        parent = self.served.inodes.get(parent_inode)
        if isinstance(parent, Folder):
            return self._replies.looked_up(self._names(parent).child(parent, name))
        check_length(name)
        if parent is self.served.tree.root and name.startswith(ALIAS_PREFIX) and is_own(ctx.pid):
            return self._reply_alias(name)
        node = parent.child(os.fsdecode(name)) if isinstance(parent, VirtualDir) else None
        if node is None:
            raise TtmError(errno.ENOENT, "no such file")
        if isinstance(node, VirtualDir):
            node.above = parent_inode
        return self._replies.looked_up(node)

    def _reply_alias(self, name: bytes) -> pyfuse3.EntryAttributes:
        ino = int(name[len(ALIAS_PREFIX) :])
        file = self.served.names.files.get(ino) or self.served.spaces.files.get(ino)
        if file is None:
            raise TtmError(errno.ENOENT, "no such BO or address space")
        attr = self._replies.looked_up(file)
        attr.entry_timeout = 0
        return attr

    @at_once
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """FORGET. What the kernel knew was kept for its sake: an OPEN may have been on its way."""
        for ino, lookups in inode_list:
            node = self.served.inodes.forget(ino, lookups)
            try:
                if isinstance(node, BoFile):
                    self.served.names.drop_if_unused(node)
                elif isinstance(node, SpaceFile):
                    self.served.spaces.drop_if_unused(node)
            except Exception:  # there is no reply to say it in, and an error would end pyfuse3's loop (H20)
                unforeseen(self.counters, "forget")

    # -- names ---------------------------------------------------------------------------------------------------

    def _folder(self, inode: int) -> Folder:
        node = self.served.inodes.get(inode)
        if isinstance(node, VirtualDir) and node.gone():
            raise TtmError(errno.ENOENT, "the BO of this folder was unlinked")
        if not isinstance(node, Folder):
            raise TtmError(
                errno.EPERM, "BOs and folders are made below bo/, address spaces in svm/, groups in groups/, VMs in vm/"
            )
        return node

    def _names(self, folder: Folder) -> Namespace | SpaceNames:
        return self.served.spaces if folder is self.served.spaces.root else self.served.names

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """A new BO or address space, opened."""
        self.served.check_open()
        folder = self._folder(parent_inode)
        if name in folder.children and not flags & os.O_EXCL:
            # It came while this was on its way, by ctl/import: the kernel shall look again, and ask who may open it.
            raise TtmError(errno.ESTALE, f"{os.fsdecode(name)!r} was made meanwhile")
        file = self._create(folder, name, mode, ctx)
        return await self._opens.open_file(file, flags, ctx), self._replies.looked_up(file)

    def _create(self, folder: Folder, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> BoFile | SpaceFile:
        try:
            file = self._names(folder).create(folder, name, mode & ~ctx.umask, ctx.uid, ctx.gid)
        except TtmError as error:
            if error.errno == errno.EDQUOT:
                self.served.failed(os.fsdecode(name), "create", error, ctx.uid)
            raise
        if isinstance(file, BoFile):
            self.served.names.clients.adopt(file, ctx.pid)
            file.bo.group = self.served.names.members.group_of(ctx.pid)
        else:
            file.space.group = self.served.names.members.group_of(ctx.pid)
        return file

    @at_once
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Regular files only."""
        if not stat.S_ISREG(mode):
            raise TtmError(errno.EPERM, "a BO is a regular file")
        folder = self._folder(parent_inode)
        return self._replies.looked_up(self._create(folder, name, mode, ctx))

    @at_once
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A folder of BOs, a group, or a VM."""
        node = self.served.inodes.get(parent_inode)
        if isinstance(node, MadeDir):
            check_length(name)
            rights = OwnRights(stat.S_IMODE(mode & ~ctx.umask), ctx.uid, ctx.gid)
            with self.served.tree.runner.error_log.watching(f"mkdir {os.fsdecode(name)}", ctx.uid):
                made = node.mkdir(os.fsdecode(name), rights)
            made.above = parent_inode
            return self._replies.looked_up(made)
        folder = self._folder(parent_inode)
        return self._replies.looked_up(self._names(folder).mkdir(folder, name, mode & ~ctx.umask, ctx.uid, ctx.gid))

    @at_once
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """The BO or address space lives on while it is open or mapped, or has another name."""
        folder = self._folder(parent_inode)
        self._names(folder).unlink(folder, name)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """An empty folder, a group that has nothing, or a VM without local BOs."""
        node = self.served.inodes.get(parent_inode)
        if isinstance(node, MadeDir):
            with self.served.tree.runner.error_log.watching(f"rmdir {os.fsdecode(name)}", ctx.uid):
                await node.rmdir(os.fsdecode(name))
            return
        folder = self._folder(parent_inode)
        self._names(folder).rmdir(folder, name)

    @at_once
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
        names = self._names(old)
        if names is not self._names(new):
            raise _stays()
        if flags == pyfuse3.RENAME_EXCHANGE:
            names.exchange(old, name_old, new, name_new)
        elif flags in (0, pyfuse3.RENAME_NOREPLACE):
            names.rename(old, name_old, new, name_new, replace=flags == 0)
        else:
            raise TtmError(errno.EINVAL, f"rename flags {flags} are not supported")

    @at_once
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """One more name of a BO or of a symbolic link."""
        entry, folder = self.served.inodes.get(inode), self._folder(new_parent_inode)
        if not isinstance(entry, Entry):
            raise TtmError(errno.EXDEV, "what is below bo/ gets names there, nothing else does")
        names = self._names(folder)
        if isinstance(entry, SpaceFile) is not (names is self.served.spaces):
            raise _stays()
        names.link(entry, folder, new_name)
        return self._replies.looked_up(entry)

    @at_once
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A symbolic link, to anything."""
        folder = self._folder(parent_inode)
        return self._replies.looked_up(self._names(folder).symlink(folder, name, target, ctx.uid, ctx.gid))

    @at_once
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Where a symbolic link leads."""
        node = self.served.inodes.get(inode)
        if not isinstance(node, Symlink):
            raise TtmError(errno.EINVAL, "this is no symbolic link")
        return node.target


def _stays() -> TtmError:
    return TtmError(errno.EXDEV, "an address space stays in svm/, a BO in bo/")
