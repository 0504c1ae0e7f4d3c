"""Names: how names are given and taken below one root (the directory operations of a file system's inodes).

What can be refused is refused before anything changes, with the errno that the system call has. A file goes when it
has no name, no open handle, and nobody knows it: `drop_if_unused` is asked when the last of these may have gone.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ttmfs.driver.entries import Dentry, Entry, File, Folder
from ttmfs.errors import TtmError

NAME_MAX: Final = 255

F = TypeVar("F", bound=File)


class Names(Generic[F]):
    """The names below `root`. `new_ino` gives inode numbers; subclasses make files, and say what becomes of them."""

    def __init__(self, new_ino: Callable[[], int], *, uid: int, gid: int, mode: int = 0o755) -> None:
        self.new_ino = new_ino
        self.root = Folder(new_ino(), stat.S_IFDIR | mode, uid, gid, is_root=True)
        self.files: dict[int, F] = {}
        """Every file that still exists, with or without a name, by inode number."""
        self.gone: Callable[[Dentry], object] = lambda dentry: None
        """Is told of each name that is taken away, or means something else now."""

    def destroy(self, file: F) -> None:
        """Give back what a file holds that is used no more."""
        raise NotImplementedError

    # -- looking up ----------------------------------------------------------------------------------------------

    def child(self, parent: Folder, name: bytes) -> Entry:
        """TtmError ENOENT, ENAMETOOLONG."""
        entry = parent.get(name)
        if entry is None:
            check_length(name)
            raise TtmError(errno.ENOENT, f"there is no {os.fsdecode(name)!r}")
        return entry

    def check_new(self, parent: Folder, name: bytes) -> None:
        """May `name` be made there? TtmError ENAMETOOLONG, EEXIST, ENOENT."""
        check_length(name)
        if name in parent.children:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(name)!r} exists already")
        if parent.unlinked:
            raise TtmError(errno.ENOENT, "the folder was removed")

    # -- changing ------------------------------------------------------------------------------------------------

    def add(self, parent: Folder, name: bytes, entry: Entry) -> None:
        """Give `entry` a name that `check_new` has found free."""
        entry.added(parent.put(name, entry))

    def unlink(self, parent: Folder, name: bytes) -> None:
        """Take the name of something that is no folder away. TtmError ENOENT, ENAMETOOLONG, EISDIR."""
        entry = self.child(parent, name)
        if isinstance(entry, Folder):
            raise TtmError(errno.EISDIR, f"{os.fsdecode(name)!r} is a folder: use rmdir")
        self._remove(parent, name)

    def rmdir(self, parent: Folder, name: bytes) -> None:
        """Remove an empty folder. TtmError ENOENT, ENAMETOOLONG, ENOTDIR, ENOTEMPTY."""
        entry = self.child(parent, name)
        if not isinstance(entry, Folder):
            raise TtmError(errno.ENOTDIR, f"{os.fsdecode(name)!r} is no folder")
        _check_empty(entry, name)
        self._remove(parent, name)

    def _remove(self, parent: Folder, name: bytes) -> None:
        dentry = parent.take(name)
        self._lost(dentry.entry, dentry)

    def rename(self, parent: Folder, name: bytes, to: Folder, to_name: bytes, *, replace: bool) -> None:
        """rename(2): replaces what has the new name unless `replace` is False; nothing happens between two names of one
        entry.

        TtmError ENOENT, EEXIST, ENAMETOOLONG, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself).
        """
        entry = self.child(parent, name)
        replaced = to.children.get(to_name)
        if replaced is None:
            self.check_new(to, to_name)
        elif not replace:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(to_name)!r} exists already")
        elif replaced.entry is entry:
            return
        _check_not_inside(entry, to)
        if replaced is not None:
            _check_replaces(entry, replaced.entry, to_name)
        dentry = parent.take(name)
        entry.renamed(dentry, to.put(to_name, entry))
        self.gone(dentry)
        if replaced is not None:
            self._lost(replaced.entry, replaced)

    def exchange(self, parent: Folder, name: bytes, to: Folder, to_name: bytes) -> None:
        """renameat2 with RENAME_EXCHANGE. TtmError ENOENT, ENAMETOOLONG, EINVAL (one inside the other)."""
        first, second = self.child(parent, name), self.child(to, to_name)
        if first is second:
            return
        _check_not_inside(first, to)
        _check_not_inside(second, parent)
        here, there = parent.children[name], to.children[to_name]
        first.renamed(here, to.put(to_name, first))
        second.renamed(there, parent.put(name, second))
        self.gone(here)
        self.gone(there)

    # -- the end of a file ---------------------------------------------------------------------------------------

    def _lost(self, entry: Entry, dentry: Dentry) -> None:
        entry.removed(dentry)
        self.gone(dentry)
        if entry.ino in self.files:
            self.drop_if_unused(self.files[entry.ino])

    def drop_if_unused(self, file: F) -> None:
        """Destroy a file that has neither a name nor an open handle, and that nobody knows."""
        if file.unlinked and not file.opens and not file.known and self.files.pop(file.ino, None) is not None:
            self.destroy(file)


def check_length(name: bytes) -> None:
    """TtmError(ENAMETOOLONG) for more than NAME_MAX bytes."""
    if len(name) > NAME_MAX:
        raise TtmError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes, this one {len(name)}")


def _check_empty(folder: Folder, name: bytes) -> None:
    if folder.children:
        raise TtmError(errno.ENOTEMPTY, f"{os.fsdecode(name)!r} is not empty")


def _check_not_inside(entry: Entry, folder: Folder) -> None:
    while folder is not entry:
        above = folder.parent
        if above is folder or above is None:
            return
        folder = above
    raise TtmError(errno.EINVAL, "a folder cannot be moved into itself")


def _check_replaces(entry: Entry, target: Entry, name: bytes) -> None:
    if isinstance(target, Folder):
        if not isinstance(entry, Folder):
            raise TtmError(errno.EISDIR, f"{os.fsdecode(name)!r} is a folder")
        _check_empty(target, name)
    elif isinstance(entry, Folder):
        raise TtmError(errno.ENOTDIR, f"{os.fsdecode(name)!r} is no folder")
