"""Namespace: the names, owners and times of BOs, as folders and files (what GEM handles and names are to a driver).

Inode numbers start at FIRST_INO and are never reused. Names are bytes without `/` and NUL, as in any file system; a
BO's `name` is its path below the root of the namespace, decoded with surrogateescape.
"""

import errno
import os
import stat
from collections.abc import Iterator
from itertools import count
from typing import Final

from ttmfs import clock
from ttmfs.driver.clients import Client, Clients
from ttmfs.driver.device import VirtualDevice
from ttmfs.errors import TtmError
from ttmfs.ttm.bo import BufferObject

FIRST_INO: Final = 1 << 20
NAME_MAX: Final = 255


class Entry:
    """What folders and BO files share. Times are ns since the epoch."""

    __slots__ = ("atime", "ctime", "gid", "ino", "mode", "mtime", "name", "parent", "uid")

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino = ino
        self.mode = 0
        self.set_mode(mode)
        self.uid = uid
        self.gid = gid
        self.atime = self.mtime = self.ctime = clock.wall_ns()
        self.name = b""
        self.parent: Folder | None = None

    def set_mode(self, mode: int) -> None:
        """Type and permissions. Files never have set-ID bits: writing would have to clear them (ttmfs.fs.handshake)."""
        self.mode = mode & ~(stat.S_ISUID | stat.S_ISGID) if stat.S_ISREG(mode) else mode

    @property
    def path(self) -> str:
        """Path below the root of the namespace."""
        parts: list[bytes] = []
        entry: Entry = self
        while entry.parent is not None:
            parts.append(entry.name)
            entry = entry.parent
        return os.fsdecode(b"/".join(reversed(parts)))


class Folder(Entry):
    """A folder of BOs and folders."""

    __slots__ = ("children",)

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        super().__init__(ino, mode, uid, gid)
        self.children: dict[bytes, Entry] = {}

    def walk(self) -> "Iterator[BoFile]":
        """All BO files below."""
        for child in self.children.values():
            if isinstance(child, Folder):
                yield from child.walk()
            else:
                assert isinstance(child, BoFile)
                yield child


class BoFile(Entry):
    """One BO and its name. It lives until it has neither a name nor an open handle."""

    __slots__ = ("bo", "client", "opens", "unlinked", "write_opens", "written")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, bo: BufferObject) -> None:
        super().__init__(ino, mode, uid, gid)
        self.bo = bo
        self.client: Client | None = None
        """To whom it is accounted."""
        self.opens = 0
        self.write_opens = 0
        self.unlinked = False
        self.written = False
        """A WRITE came since mtime was last set."""

    def touch(self, when: int) -> None:
        """The device changed the content: mtime and ctime are `when`, ns since the epoch."""
        self.mtime = self.ctime = when


class Namespace:
    """The tree below bo/ of one device."""

    def __init__(self, vdev: VirtualDevice, *, uid: int, gid: int, mode: int = 0o755) -> None:
        self.vdev = vdev
        self._inos = count(FIRST_INO)
        self.root = Folder(next(self._inos), stat.S_IFDIR | mode, uid, gid)
        self.files: dict[int, BoFile] = {}
        """Every BO file that still exists, unlinked but open ones included, by inode number."""
        self.clients = Clients()

    def new_ino(self) -> int:
        """An inode number that was never used."""
        return next(self._inos)

    # -- looking up ----------------------------------------------------------------------------------------------

    def find(self, name: str) -> BoFile:
        """The BO file at a path. TtmError: ENOENT there is none, EISDIR it is a folder."""
        entry: Entry = self.root
        for part in os.fsencode(name).split(b"/"):
            child = entry.children.get(part) if isinstance(entry, Folder) else None
            if child is None:
                raise TtmError(errno.ENOENT, f"there is no BO {name[:300]!r}: see `ls objects`")
            entry = child
        if not isinstance(entry, BoFile):
            raise TtmError(errno.EISDIR, f"{name[:300]!r} is a folder: name a BO in it")
        return entry

    def walk(self) -> Iterator[BoFile]:
        """All BO files that have a name."""
        return self.root.walk()

    # -- changing ------------------------------------------------------------------------------------------------

    def _add(self, parent: Folder, name: bytes, entry: Entry) -> None:
        entry.name = name
        entry.parent = parent
        parent.children[name] = entry
        parent.mtime = parent.ctime = clock.wall_ns()

    def check_new(self, parent: Folder, name: bytes) -> None:
        """May `name` be made there? TtmError ENAMETOOLONG, EEXIST, ENOENT."""
        if len(name) > NAME_MAX:
            raise TtmError(errno.ENAMETOOLONG, f"a name has at most {NAME_MAX} bytes, this one {len(name)}")
        if name in parent.children:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(name)!r} exists already")
        if parent.parent is None and parent is not self.root:
            raise TtmError(errno.ENOENT, "the folder was removed")

    def create(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> BoFile:
        """A new, empty BO."""
        self.check_new(parent, name)
        bo = self.vdev.create_bo("")
        file = BoFile(next(self._inos), stat.S_IFREG | stat.S_IMODE(mode), uid, gid, bo)
        bo.private = file
        self._add(parent, name, file)
        bo.name = file.path
        self.files[file.ino] = file
        self.clients.adopt(file)
        if self.vdev.ttm.trace.on:
            self.vdev.ttm.trace.emit("bo_create", bo.name, ino=file.ino, uid=uid)
        return file

    def mkdir(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> Folder:
        """A new folder."""
        self.check_new(parent, name)
        folder = Folder(next(self._inos), stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)
        self._add(parent, name, folder)
        return folder

    def unlink(self, parent: Folder, name: bytes) -> BoFile:
        """Take the name away; the BO goes with its last open handle. TtmError ENOENT, EISDIR."""
        entry = self.child(parent, name)
        if not isinstance(entry, BoFile):
            raise TtmError(errno.EISDIR, f"{os.fsdecode(name)!r} is a folder: use rmdir")
        self._remove(parent, entry)
        entry.unlinked = True
        entry.ctime = clock.wall_ns()
        self.drop_if_unused(entry)
        return entry

    def rmdir(self, parent: Folder, name: bytes) -> None:
        """Remove an empty folder. TtmError ENOENT, ENOTDIR, ENOTEMPTY."""
        entry = self.child(parent, name)
        if not isinstance(entry, Folder):
            raise TtmError(errno.ENOTDIR, f"{os.fsdecode(name)!r} is no folder")
        if entry.children:
            raise TtmError(errno.ENOTEMPTY, f"{os.fsdecode(name)!r} is not empty")
        self._remove(parent, entry)

    def child(self, parent: Folder, name: bytes) -> Entry:
        """TtmError ENOENT."""
        entry = parent.children.get(name)
        if entry is None:
            raise TtmError(errno.ENOENT, f"there is no {os.fsdecode(name)[:300]!r}")
        return entry

    def _remove(self, parent: Folder, entry: Entry) -> None:
        del parent.children[entry.name]
        parent.mtime = parent.ctime = clock.wall_ns()
        entry.parent = None

    def rename(self, parent: Folder, name: bytes, to: Folder, to_name: bytes, *, replace: bool) -> None:
        """rename(2): replaces a BO or an empty folder unless `replace` is False.

        TtmError ENOENT, EEXIST, ENAMETOOLONG, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself).
        """
        entry = self.child(parent, name)
        target = to.children.get(to_name)
        if target is entry:
            return
        if target is None:
            self.check_new(to, to_name)
        elif not replace:
            raise TtmError(errno.EEXIST, f"{os.fsdecode(to_name)!r} exists already")
        self._check_not_inside(entry, to)
        if target is not None:
            if isinstance(entry, Folder) and not isinstance(target, Folder):
                raise TtmError(errno.ENOTDIR, f"{os.fsdecode(to_name)!r} is no folder")
            if isinstance(target, Folder):
                if not isinstance(entry, Folder):
                    raise TtmError(errno.EISDIR, f"{os.fsdecode(to_name)!r} is a folder")
                self.rmdir(to, to_name)
            else:
                self.unlink(to, to_name)
        self._remove(parent, entry)
        self._add(to, to_name, entry)
        self._renamed(entry)

    def exchange(self, parent: Folder, name: bytes, to: Folder, to_name: bytes) -> None:
        """renameat2 with RENAME_EXCHANGE."""
        first, second = self.child(parent, name), self.child(to, to_name)
        self._check_not_inside(first, to)
        self._check_not_inside(second, parent)
        self._remove(parent, first)
        self._remove(to, second)
        self._add(to, to_name, first)
        self._add(parent, name, second)
        self._renamed(first)
        self._renamed(second)

    @staticmethod
    def _check_not_inside(entry: Entry, folder: Folder) -> None:
        inside: Folder | None = folder
        while inside is not None:
            if inside is entry:
                raise TtmError(errno.EINVAL, "a folder cannot be moved into itself")
            inside = inside.parent

    @staticmethod
    def _renamed(entry: Entry) -> None:
        entry.ctime = clock.wall_ns()
        for file in entry.walk() if isinstance(entry, Folder) else (entry,):
            assert isinstance(file, BoFile)
            file.bo.name = file.path

    def drop_if_unused(self, file: BoFile) -> None:
        """Destroy the BO of a file that has neither a name nor an open handle."""
        if file.unlinked and not file.opens and self.files.pop(file.ino, None) is not None:
            self.clients.drop(file)
            self.vdev.ttm.release(file.bo)
