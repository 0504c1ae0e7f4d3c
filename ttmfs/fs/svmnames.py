"""Names of svm/: shared virtual address spaces as files, one flat folder of them (what Namespace is to BOs).

A space lives until it has neither a name nor an open handle nor a mapping; its device side ends with the name. Inode
numbers are the namespace's, never reused. Offsets in a file are addresses of its space.
"""

import errno
import os
import stat
import time
from collections.abc import Callable

from ttmfs.driver.namespace import NAME_MAX, Entry, Folder
from ttmfs.errors import TtmError
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.svm import Svm


class SpaceFile(Entry):
    """One address space and its name."""

    __slots__ = ("client_opens", "eof_page_read", "last_error", "opens", "space", "unlinked", "write_opens", "written")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, space: AddressSpace) -> None:
        super().__init__(ino, mode, uid, gid)
        self.space = space
        self.opens = 0
        self.client_opens = 0
        """Those of them that are not the daemon's own."""
        self.write_opens = 0
        self.unlinked = False
        self.written = False
        """A WRITE came, or the device wrote, since mtime was last set."""
        self.eof_page_read = False
        """A client may have the page with the end of the file in its cache."""
        self.last_error = ""

    def device_wrote(self) -> bool:
        """A device write shows in mtime at once (True) if nobody has the file open, else when somebody closes it.

        Not at once for who has it open: a moved mtime makes the next stat drop the whole file from the page cache
        (H25), also the ranges that the device did not touch.
        """
        if self.client_opens:
            self.written = True
            return False
        self.mtime = self.ctime = time.time_ns()
        return True


class SpaceNames:
    """The folder svm/ of one device. `new_ino` gives inode numbers."""

    def __init__(self, svm: Svm, new_ino: Callable[[], int], *, uid: int, gid: int, mode: int = 0o755) -> None:
        self.svm = svm
        self._new_ino = new_ino
        self.root = Folder(new_ino(), stat.S_IFDIR | mode, uid, gid)
        self.files: dict[int, SpaceFile] = {}
        """Every space file that still exists, unlinked but open ones included, by inode number."""

    def child(self, parent: Folder, name: bytes) -> SpaceFile:
        """TtmError ENOENT."""
        entry = parent.children.get(name)
        if entry is None:
            raise TtmError(errno.ENOENT, f"there is no {os.fsdecode(name)[:300]!r}: see `ls svm`")
        assert isinstance(entry, SpaceFile)
        return entry

    def create(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> SpaceFile:
        """A new space of size 0. TtmError EEXIST, ENAMETOOLONG, and what Svm.create raises."""
        self._check_new(name)
        space = self.svm.create(os.fsdecode(name))
        file = SpaceFile(self._new_ino(), stat.S_IFREG | stat.S_IMODE(mode), uid, gid, space)
        space.private = file
        self._add(name, file)
        self.files[file.ino] = file
        return file

    def mkdir(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> Folder:
        """TtmError(EPERM): there are no folders."""
        raise TtmError(errno.EPERM, "svm/ holds address spaces, no folders")

    def unlink(self, parent: Folder, name: bytes) -> SpaceFile:
        """Take the name away: the device side ends now, the rest with the last handle or mapping. TtmError ENOENT."""
        file = self.child(parent, name)
        self._remove(file)
        file.unlinked = True
        file.ctime = time.time_ns()
        file.space.unlink()
        self.drop_if_unused(file)
        return file

    def rmdir(self, parent: Folder, name: bytes) -> None:
        """TtmError ENOENT, ENOTDIR."""
        self.child(parent, name)
        raise TtmError(errno.ENOTDIR, f"{os.fsdecode(name)!r} is no folder")

    def rename(self, parent: Folder, name: bytes, to: Folder, to_name: bytes, *, replace: bool) -> None:
        """rename(2) within svm/. TtmError ENOENT, EEXIST, ENAMETOOLONG; EXDEV from or to bo/."""
        self._check_within(parent, to)
        file = self.child(parent, name)
        target = to.children.get(to_name)
        if target is file:
            return
        if target is None:
            self._check_new(to_name)
        elif not replace:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(to_name)!r} exists already")
        else:
            self.unlink(to, to_name)
        self._remove(file)
        self._add(to_name, file)

    def exchange(self, parent: Folder, name: bytes, to: Folder, to_name: bytes) -> None:
        """renameat2 with RENAME_EXCHANGE, within svm/. TtmError ENOENT; EXDEV from or to bo/."""
        self._check_within(parent, to)
        first, second = self.child(parent, name), self.child(to, to_name)
        self._remove(first)
        if second is not first:
            self._remove(second)
            self._add(name, second)
        self._add(to_name, first)

    def drop_if_unused(self, file: SpaceFile) -> None:
        """Give everything back of a space that has neither a name nor an open handle."""
        if file.unlinked and not file.opens and self.files.pop(file.ino, None) is not None:
            file.space.release()

    def _check_within(self, parent: Folder, to: Folder) -> None:
        if parent is not self.root or to is not self.root:
            raise TtmError(errno.EXDEV, "an address space stays in svm/, a BO in bo/")

    def _check_new(self, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise TtmError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes, this one {len(name)}")
        if name in self.root.children:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(name)!r} exists already")

    def _add(self, name: bytes, file: SpaceFile) -> None:
        file.name = name
        file.parent = self.root
        file.space.name = os.fsdecode(name)
        self.root.children[name] = file
        self.root.mtime = self.root.ctime = file.ctime = time.time_ns()

    def _remove(self, file: SpaceFile) -> None:
        del self.root.children[file.name]
        self.root.mtime = self.root.ctime = time.time_ns()
        file.parent = None
