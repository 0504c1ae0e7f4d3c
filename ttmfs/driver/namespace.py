"""Namespace: the names, owners and times of BOs, as folders and files (what GEM handles and names are to a driver)."""

import errno
import os
import stat
from collections.abc import Callable
from itertools import count, islice
from typing import Final

from ttmfs import clock
from ttmfs.driver.clients import Client, Clients
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.entries import FIRST_INO, LINK_MAX, Entry, File, Folder, Symlink
from ttmfs.driver.members import Members
from ttmfs.driver.names import Names
from ttmfs.driver.shown import NOT_SHOWN
from ttmfs.errors import TtmError, meant
from ttmfs.observe import points
from ttmfs.ttm import lifetime
from ttmfs.ttm.account import BOS, Account
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.looking import after_stores

_NO_NAMES: Final = (b"", b".", b"..")

_ALL_LIST: Final = 0o444
_LOOKED_AT: Final = 4096
_COMPARED: Final = 48
_LONGEST: Final = 64
"""Names of a folder that are looked at, and compared, for one that is not there, and its longest: some milliseconds."""


class BoFile(File):
    """One BO and its names, and the Watcher of the BO."""

    __slots__ = ("bo", "client")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, bo: BufferObject) -> None:
        super().__init__(ino, mode, uid, gid)
        self.bo = bo
        self.client: Client | None = None
        """To whom it is accounted."""

    @property
    def owner(self) -> str:
        """The client's name in clients/."""
        return "" if self.client is None else self.client.file_name

    def pay(self, account: Account) -> None:
        """It has another owner, who pays for it."""
        self.bo.account.uncharge(BOS, 1)
        lifetime.set_account(self.bo, account)
        account.charge(BOS, 1)

    def unlocked(self) -> None:
        """The reservation of the BO was released: st_blocks may be others."""
        if self.shown not in (NOT_SHOWN, self.bo.held_pages):
            self.attributes_changed()


def _unlocked(bo: BufferObject) -> None:
    file = bo.private
    assert isinstance(file, BoFile)
    file.unlocked()


_WHEN_UNLOCKED: Final = (_unlocked,)


def _perhaps(name: str, folder: Folder) -> str:
    """What to do about a name that is not in a folder: the one that may have been meant, where everybody may list it.
    """
    *path, leaf = name.split("/")
    listed = folder.children if folder.mode & _ALL_LIST == _ALL_LIST and len(leaf) <= _LONGEST else ()
    alike = (there for there in islice(listed, _LOOKED_AT) if abs(len(there) - len(leaf)) <= 2)
    near = meant(leaf, map(os.fsdecode, islice(alike, _COMPARED)))
    return f"did you mean {'/'.join([*path, near])!r}?" if near else "see `ls objects`"


class Namespace(Names[BoFile]):
    """The tree below bo/ of one device."""

    def __init__(self, vdev: VirtualDevice, *, uid: int, gid: int, mode: int = 0o755) -> None:
        super().__init__(count(FIRST_INO).__next__, uid=uid, gid=gid, mode=mode)
        self.vdev = vdev
        self.clients = Clients()
        vdev.ttm.worked = self.clients.worked
        self.members = Members(vdev.ttm.dmem.root)

    def find(self, name: str, entering: Callable[[Folder], None] = lambda _folder: None) -> BoFile:
        """The BO file at a path; links are not followed. TtmError: ENOENT there is none, EISDIR it is a folder.

        `entering` is told each folder before a name is looked for in it, and may raise.
        """
        entry: Entry | None = self.root
        folder = self.root
        for part in os.fsencode(name).split(b"/"):
            if not isinstance(entry, Folder):
                entry = None
                break
            folder = entry
            entering(folder)
            entry = folder.get(part)
        if isinstance(entry, Symlink):
            raise TtmError(errno.ENOENT, f"{name[:300]!r} is a symbolic link: name the BO that it leads to")
        if entry is None:
            raise TtmError(errno.ENOENT, f"there is no BO {name[:300]!r}: {_perhaps(name, folder)}")
        if not isinstance(entry, BoFile):
            raise TtmError(errno.EISDIR, f"{name[:300]!r} is a folder: name a BO in it")
        return entry

    def place(self, name: str) -> tuple[Folder, bytes]:
        """The folder and the name there of a path that shall be made. TtmError ENOENT, EINVAL, and as `check_new`."""
        *folders, leaf = os.fsencode(name).split(b"/")
        parent = self.root
        for part in folders:
            child = parent.get(part)
            if not isinstance(child, Folder):
                raise TtmError(errno.ENOENT, f"there is no folder {os.fsdecode(part)[:300]!r} for {name[:300]!r}")
            parent = child
        if leaf in _NO_NAMES or b"\0" in leaf:
            raise TtmError(errno.EINVAL, f"{name[:300]!r} is no name for a BO")
        self.check_new(parent, leaf)
        return parent, leaf

    # -- changing ------------------------------------------------------------------------------------------------

    def create(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> BoFile:
        """A new, empty BO. TtmError as `check_new`, and EDQUOT when the user may have no more of them."""
        self.check_new(parent, name)
        account = self.vdev.ttm.accounts.of(uid)
        account.check(BOS, 1)
        bo = self.vdev.create_bo("", account)
        account.charge(BOS, 1)
        after_stores(bo)
        file = BoFile(self.new_ino(), stat.S_IFREG | stat.S_IMODE(mode), uid, parent.group(gid), bo)
        bo.private = bo.named = bo.watcher = file
        bo.when_unlocked = _WHEN_UNLOCKED
        self.add(parent, name, file)
        self.files[file.ino] = file
        self.clients.adopt(file)
        points.bo_create(self.vdev.ttm.trace, bo, ino=file.ino, uid=uid)
        return file

    def mkdir(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> Folder:
        """A new folder; in one that hands its group on, it does so too. TtmError as `check_new`."""
        self.check_new(parent, name)
        mode = stat.S_IMODE(mode) | parent.mode & stat.S_ISGID
        folder = Folder(self.new_ino(), stat.S_IFDIR | mode, uid, parent.group(gid))
        self.add(parent, name, folder)
        return folder

    def symlink(self, parent: Folder, name: bytes, target: bytes, uid: int, gid: int) -> Symlink:
        """A symbolic link. TtmError as `check_new`."""
        self.check_new(parent, name)
        link = Symlink(self.new_ino(), uid, parent.group(gid), target)
        self.add(parent, name, link)
        return link

    def link(self, entry: Entry, parent: Folder, name: bytes) -> None:
        """One more name.

        TtmError EPERM for a folder, ENOENT for what was removed, EMLINK for what has LINK_MAX, and as `check_new`.
        """
        if isinstance(entry, Folder):
            raise TtmError(errno.EPERM, "a folder has one name: a symbolic link can lead to it")
        if entry.unlinked:
            raise TtmError(errno.ENOENT, "it was removed: it gets no new name")
        if entry.nlink >= LINK_MAX:
            raise TtmError(errno.EMLINK, f"it has {LINK_MAX} names, and gets no more")
        self.check_new(parent, name)
        self.add(parent, name, entry)
        entry.ctime = clock.wall_ns()

    def destroy(self, file: BoFile) -> None:
        """The BO goes, once its fences have signaled."""
        self.clients.drop(file)
        file.bo.account.uncharge(BOS, 1)
        self.vdev.destroy_bo(file.bo)
