"""Names of svm/: shared virtual address spaces as files, one flat folder of them (what Namespace is to BOs).

A space lives until it has neither a name nor an open handle nor a mapping, and nobody knows it; its device side ends
with the name. Inode numbers are the namespace's, never reused. Offsets in a file are addresses of its space.
"""

import errno
import os
import stat
from collections.abc import Callable
from typing import Never

from ttmfs.driver.entries import Dentry, Entry, File, Folder
from ttmfs.driver.names import Names
from ttmfs.errors import TtmError
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.spaces import Svm
from ttmfs.ttm.account import BOS, Account
from ttmfs.ttm.looking import after_stores


class SpaceFile(File):
    """One address space and its name."""

    __slots__ = ("client_opens", "last_error", "space")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, space: AddressSpace) -> None:
        super().__init__(ino, mode, uid, gid)
        self.space = space
        self.client_opens = 0
        """Those opens that are not the daemon's own."""
        self.last_error = ""

    def content_changed(self) -> None:
        """A device write shows in mtime at once if nobody has the file open, else when somebody closes it.

        Not at once for who has it open: a moved mtime makes the next stat drop the whole file from the page cache
        (H25), also the ranges that the device did not touch.
        """
        if self.client_opens:
            self.written = True
        else:
            self.touch()

    def pay(self, account: Account) -> None:
        """It has another owner, who pays for it."""
        self.space.account.uncharge(BOS, 1)
        self.space.set_account(account)
        account.charge(BOS, 1)

    def renamed(self, dentry: Dentry, to: Dentry) -> None:
        """The space is called so too."""
        super().renamed(dentry, to)
        self.space.name = os.fsdecode(to.name)

    def removed(self, dentry: Dentry) -> None:
        """The device side ends now, the rest with the last handle or mapping."""
        super().removed(dentry)
        self.space.unlink()


class SpaceNames(Names[SpaceFile]):
    """The folder svm/ of one device. `new_ino` gives inode numbers."""

    def __init__(self, svm: Svm, new_ino: Callable[[], int], *, uid: int, gid: int, mode: int = 0o755) -> None:
        super().__init__(new_ino, uid=uid, gid=gid, mode=mode)
        self.svm = svm

    def create(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> SpaceFile:
        """A new space of size 0. TtmError as `check_new`, EDQUOT as of BOs, and what Svm.create raises."""
        self.check_new(parent, name)
        account = self.svm.vdev.ttm.accounts.of(uid)
        account.check(BOS, 1)
        space = self.svm.create(os.fsdecode(name), account)
        account.charge(BOS, 1)
        after_stores(space)
        file = SpaceFile(self.new_ino(), stat.S_IFREG | stat.S_IMODE(mode), uid, parent.group(gid), space)
        space.private = space.watcher = file
        self.add(parent, name, file)
        self.files[file.ino] = file
        return file

    def mkdir(self, parent: Folder, name: bytes, mode: int, uid: int, gid: int) -> Never:
        """TtmError(EPERM): there are no folders."""
        raise TtmError(errno.EPERM, "svm/ holds address spaces, no folders")

    def symlink(self, parent: Folder, name: bytes, target: bytes, uid: int, gid: int) -> Never:
        """TtmError(EPERM): there are no links."""
        raise TtmError(errno.EPERM, "svm/ holds address spaces, no links")

    def link(self, entry: Entry, parent: Folder, name: bytes) -> Never:
        """TtmError(EPERM): a space has one name."""
        raise TtmError(errno.EPERM, "an address space has one name")

    def destroy(self, file: SpaceFile) -> None:
        """Everything back."""
        file.space.account.uncharge(BOS, 1)
        file.space.release()
