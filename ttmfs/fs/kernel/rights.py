"""Rights: who may do what with a file of the mount, as an owner and mode bits that the kernel checks.

A file that does something has the bits of who may do it: what works on a BO those of the BO, as they are at that
moment; what works on the device, or shows names of BOs, those of the user who mounted it (root may anything). Nothing
is read from /proc, so a user namespace gains nothing.

Only `ctl/submit` and `ctl/copy` name BOs in what is written to them. There `may` decides, by the user and group that
the kernel gave with the OPEN. It does not know supplementary groups: somebody of another primary group gets what both
the group and all others may.
"""

import errno
import stat
from dataclasses import dataclass
from typing import Final, Protocol

from ttmfs.driver.entries import Entry, Folder
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.kernel.opening import Opening
from ttmfs.memory.as_caller import Caller, granted

READ: Final = 4
WRITE: Final = 2
SEARCH: Final = 1

_ALL_READ: Final = 0o444
_ALL_WRITE: Final = 0o222


class Rights(Protocol):
    """An owner and permission bits, both as they are now."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def bits(self) -> int: ...


class Owned(Protocol):
    """What has an owner and a mode: an entry, a virtual folder."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def mode(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """What never changes."""

    bits: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Of:
    """Those of an entry, whose bits are made into others."""

    entry: Entry

    @property
    def uid(self) -> int:
        return self.entry.uid

    @property
    def gid(self) -> int:
        return self.entry.gid


class FolderOf(_Of):
    """The mirror of a folder: what is hidden there is hidden here."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        return stat.S_IMODE(self.entry.mode)


class ObjectOf(_Of):
    """The folder of what can be asked of it, and done with it: the files in it say who may."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        return 0o555


class ReadersOf(_Of):
    """A text about it."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        return self.entry.mode & _ALL_READ


class AttributeOf(_Of):
    """A value of it that is read and written."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        return self.entry.mode & (_ALL_READ | _ALL_WRITE)


class CommandOf(_Of):
    """A command that changes it, and the result of it: both for who may write it."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        writers = self.entry.mode & _ALL_WRITE
        return writers | writers << 1


class QuestionOf(_Of):
    """A command that only asks, and the answer: both for who may read it."""

    __slots__ = ()

    @property
    def bits(self) -> int:
        readers = self.entry.mode & _ALL_READ
        return readers | readers >> 1


@dataclass(frozen=True, slots=True)
class Owner:
    """The user who mounted, and what is theirs or everybody's."""

    uid: int
    gid: int

    def only(self, bits: int) -> Fixed:
        """For the owner and root."""
        return Fixed(bits & 0o700, self.uid, self.gid)

    def public(self, bits: int = _ALL_READ) -> Fixed:
        """For everybody."""
        return Fixed(bits, self.uid, self.gid)


def may(opening: Opening, entry: Owned, bits: int) -> bool:
    """May who has opened a file do all of `bits` (READ, WRITE, SEARCH) with `entry`?"""
    return granted(Caller(opening.uid, opening.gid), entry.uid, entry.gid, entry.mode) & bits == bits


def find_bo(names: Namespace, opening: Opening, name: str, bits: int) -> BoFile:
    """The BO of a path, for READ or WRITE. TtmError: EACCES where that is not allowed, else as Namespace.find."""

    def entering(folder: Folder) -> None:
        if not may(opening, folder, SEARCH):
            raise TtmError(errno.EACCES, f"{name[:300]!r}: you may not search the folder {folder.path!r}")

    file = names.find(name, entering)
    if not may(opening, file, bits):
        raise TtmError(errno.EACCES, f"you may not {'write' if bits & WRITE else 'read'} {name[:300]!r}")
    return file
