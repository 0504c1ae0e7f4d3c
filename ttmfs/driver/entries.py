"""Entries: what is below bo/ and svm/, and the names that it has there (the inodes and dentries of a file system).

An Entry has any number of names, oldest first; a folder has one, and a root its own. A Dentry is one name in one
folder. Its number grows from name to name of that folder and is never used again, so whoever lists the folder can go
on after any number, whatever was made and removed meanwhile; a name that is replaced keeps its number.

Names are bytes without `/` and NUL, as in any file system; a path is those of its folders and its own, decoded with
surrogateescape. Inode numbers start at FIRST_INO and are never reused. Times are ns since the epoch.
"""

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from ttmfs import clock
from ttmfs.driver.shown import NO_ATTRIBUTE_CACHE, NOT_SHOWN, AttributeCache

FIRST_INO: Final = 1 << 20
FIRST_NUMBER: Final = 3
"""Of the names in a folder: 1 and 2 are those of `.` and `..`."""
PATH_MAX: Final = 4096
"""Bytes of a path that is told."""
LINK_MAX: Final = 1024
"""Names of one file: `status` lists them all."""
_CUT: Final = "…".encode()

_number = attrgetter("number")
_MODES: Final[dict[int, int]] = {}
"""Each that there was: files share them."""


class Entry:
    """What folders, files and symbolic links share."""

    __slots__ = (
        "_last_path", "atime", "cache", "ctime", "gid", "ino", "known", "mode", "mtime", "names", "shown", "uid",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino = ino
        self.mode = 0
        self.set_mode(mode)
        self.uid = uid
        self.gid = gid
        self.atime = self.mtime = self.ctime = clock.wall_ns()
        self.names: tuple[Dentry, ...] = ()
        """Oldest first; empty once it is removed."""
        self.known = False
        """Whoever shows it to clients (the kernel, of a mount) may still name it by its inode number."""
        self._last_path = ""
        self.cache: AttributeCache = NO_ATTRIBUTE_CACHE
        """Who caches its attributes; that of the folder it is put into."""
        self.shown = NOT_SHOWN
        """Pages of content that its attributes said when somebody was given them to cache; NOT_SHOWN: nobody was."""

    def attributes_changed(self) -> None:
        """They are not what was shown any more, and not by a request of those who saw them."""
        if self.shown != NOT_SHOWN:
            self.shown = NOT_SHOWN
            self.cache.changed(self.ino)

    def set_mode(self, mode: int) -> None:
        """Type and permissions. Files never have set-ID bits: writing would have to clear them.

        See ttmfs.fs.kernel.handshake.
        """
        mode = mode & ~(stat.S_ISUID | stat.S_ISGID) if stat.S_ISREG(mode) else mode
        self.mode = _MODES.setdefault(mode, mode)

    @property
    def unlinked(self) -> bool:
        """It has no name any more."""
        return not self.names

    @property
    def nlink(self) -> int:
        """st_nlink."""
        return len(self.names)

    @property
    def parent(self) -> "Folder | None":
        """The folder of its oldest name; that of a root is itself."""
        return self.names[0].folder if self.names else None

    @property
    def name(self) -> bytes:
        """Its oldest name that is left; b"" without one."""
        return self.names[0].name if self.names else b""

    @property
    def path(self) -> str:
        """Path of its oldest name below the root; the last one that it had, when it has none any more."""
        return self.names[0].path if self.names else self._last_path

    def added(self, dentry: "Dentry") -> None:
        """It got a name, the youngest."""
        self.names = (*self.names, dentry)
        self.cache = dentry.folder.cache

    def renamed(self, dentry: "Dentry", to: "Dentry") -> None:
        """One of its names is another now, and as old as it was."""
        self.names = tuple(to if name is dentry else name for name in self.names)
        self.ctime = clock.wall_ns()

    def removed(self, dentry: "Dentry") -> None:
        """It lost a name."""
        if len(self.names) == 1:
            self._last_path = self.path
        self.names = tuple(name for name in self.names if name is not dentry)
        self.ctime = clock.wall_ns()


@dataclass(frozen=True, slots=True, eq=False)
class Dentry:
    """One name of an entry in a folder."""

    folder: "Folder"
    name: bytes
    entry: Entry
    number: int

    @property
    def path(self) -> str:
        """Below the root; the end of it behind `…/` where it is longer than PATH_MAX.

        Folders may be as deep as somebody likes to make them, and each READ and each event names its BO.
        """
        parts = [self.name]
        left = PATH_MAX - len(self.name)
        folder = self.folder
        while not folder.is_root:
            left -= len(folder.name) + 1
            if left < 0:
                parts.append(_CUT)
                break
            parts.append(folder.name)
            folder = folder.names[0].folder
        return os.fsdecode(b"/".join(reversed(parts)))


class Folder(Entry):
    """A folder: its names by name and by number."""

    __slots__ = ("_dead", "_next", "_order", "children", "is_root", "subfolders", "symlinks")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, *, is_root: bool = False) -> None:
        super().__init__(ino, mode, uid, gid)
        self.children: dict[bytes, Dentry] = {}
        self.subfolders = self.symlinks = 0
        self.is_root = is_root
        self._next = FIRST_NUMBER
        self._order: list[Dentry] = []
        """By number; names that are gone among them, until these are the greater part."""
        self._dead = 0
        if is_root:
            self.names = (Dentry(self, b"", self, 0),)

    @property
    def nlink(self) -> int:
        """2 and one for each folder in it; 0 when it was removed."""
        return 2 + self.subfolders if self.names else 0

    @property
    def path(self) -> str:
        """"" for a root."""
        return "" if self.is_root else super().path

    def get(self, name: bytes) -> Entry | None:
        """What has this name here."""
        dentry = self.children.get(name)
        return None if dentry is None else dentry.entry

    def group(self, gid: int) -> int:
        """The group of what somebody of group `gid` makes here: that of a folder with the set-group-ID bit."""
        return self.gid if self.mode & stat.S_ISGID else gid

    @property
    def last(self) -> int:
        """The number that the youngest name here got."""
        return self._next - 1

    def after(self, number: int) -> Iterator[Dentry]:
        """The names with a greater number, in its order. Change no name here before the last one that you take."""
        order = self._order
        for index in range(bisect_right(order, number, key=_number), len(order)):
            dentry = order[index]
            if self.children.get(dentry.name) is dentry:
                yield dentry

    def put(self, name: bytes, entry: Entry) -> Dentry:
        """A dentry for `entry`, in place of the one that has this name or as the youngest; the entry is not told."""
        replaced = self.children.get(name)
        if replaced is None:
            dentry = Dentry(self, name, entry, self._next)
            self._next += 1
            self._order.append(dentry)
        else:
            dentry = Dentry(self, name, entry, replaced.number)
            self._order[bisect_left(self._order, replaced.number, key=_number)] = dentry
            self._count(replaced.entry, -1)
        self.children[name] = dentry
        self._count(entry, 1)
        self.touched()
        return dentry

    def take(self, name: bytes) -> Dentry:
        """Take a name away that is there; its entry is not told."""
        dentry = self.children.pop(name)
        self._count(dentry.entry, -1)
        self._dead += 1
        if self._dead > len(self.children):
            # A dict keeps the order in which its keys came, and a replaced value its place: that of the numbers.
            self._order = list(self.children.values())
            self._dead = 0
        self.touched()
        return dentry

    def _count(self, entry: Entry, one: int) -> None:
        if isinstance(entry, Folder):
            self.subfolders += one
        elif isinstance(entry, Symlink):
            self.symlinks += one

    def touched(self) -> None:
        """A name changed."""
        self.mtime = self.ctime = clock.wall_ns()


class File(Entry):
    """A BO file or an address space: it lives until it has no name, no open handle, and nobody knows it."""

    __slots__ = ("opens", "write_failed", "write_opens", "written")

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        super().__init__(ino, mode, uid, gid)
        self.opens = 0
        self.write_opens = 0
        self.written = False
        """A WRITE came, or the device wrote, since mtime was last set."""
        self.write_failed = False
        """A WRITE did, since a client who writes last closed it."""

    def touch(self) -> None:
        """mtime and ctime are now."""
        self.mtime = self.ctime = clock.wall_ns()
        self.attributes_changed()

    def content_changed(self) -> None:
        """See ttmfs.ttm.watcher."""
        self.touch()

    async def settle(self) -> None:
        """Until nobody shows attributes of before."""
        await self.cache.settle()


class Symlink(Entry):
    """A symbolic link to `target`, any bytes."""

    __slots__ = ("target",)

    def __init__(self, ino: int, uid: int, gid: int, target: bytes) -> None:
        super().__init__(ino, stat.S_IFLNK | 0o777, uid, gid)
        self.target = target
