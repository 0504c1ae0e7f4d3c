"""NameRequests: LOOKUP and FORGET, making, renaming and removing names, and listing directories."""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

import pyfuse3

from ttmfs.driver.namespace import BoFile, Folder, Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.guard import guarded
from ttmfs.fs.nodes import Node, VirtualDir, VirtualFile
from ttmfs.fs.openrequests import OpenRequests
from ttmfs.fs.served import is_own
from ttmfs.fs.svmnames import SpaceFile, SpaceNames

ALIAS_PREFIX: Final = b".ttmfs-ino-"
"""Names in the root that open a BO by inode number; only the daemon's own threads may look them up."""


class NameRequests(OpenRequests):
    """Names: those below bo/ and svm/ are files and folders, all others are made up when they are asked for."""

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
            if name.startswith(ALIAS_PREFIX) and is_own(ctx.pid):
                return self._reply_alias(name)
        node = parent.find(os.fsdecode(name)) if isinstance(parent, VirtualDir) else None
        if node is None:
            raise TtmError(errno.ENOENT, "no such file")
        if isinstance(node, VirtualFile) and isinstance(parent, VirtualDir) and not node.mode & 0o222:
            node.key = f"{parent.key}/{os.fsdecode(name)}"
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

    # -- names ---------------------------------------------------------------------------------------------------

    def _folder(self, inode: int) -> Folder:
        node = self.inodes.get(inode)
        if isinstance(node, VirtualDir) and node.gone():
            raise TtmError(errno.ENOENT, "the BO of this folder was unlinked")
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
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self._attributes(node, ino), index + 1):
                return
            self.inodes.looked_up(ino, node)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Forget the snapshot."""
        self._handles.pop(fh, None)
