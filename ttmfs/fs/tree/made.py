"""MadeDir: a virtual folder in which mkdir and rmdir mean something (a group, a VM); its owner and mode are its own.

It lists its files first, then the folders that were made in it, in the order in which they came.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ttmfs.driver.entries import FIRST_NUMBER
from ttmfs.errors import TtmError
from ttmfs.fs.tree.nodes import Node, VirtualDir


@dataclass(slots=True)
class OwnRights:
    """An owner and bits that can be changed."""

    bits: int
    uid: int
    gid: int


class MadeDir(VirtualDir, ABC):
    """One such folder, with `files` in it. `gone` says whether it was removed."""

    def __init__(
        self,
        key: str,
        files: Sequence[str],
        rights: OwnRights,
        *,
        gone: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(key, self._find, self, rights, gone=gone)
        self.own = rights
        self._files = tuple(files)
        self._below: dict[str, tuple[int, MadeDir]] = {}
        self.last = FIRST_NUMBER - 1 + len(self._files)

    # -- names (NameTable) ---------------------------------------------------------------------------------------

    @property
    def folders(self) -> int:
        """Those right below it."""
        return len(self._below)

    def after(self, number: int) -> Iterator[tuple[int, str]]:
        """Files, then folders."""
        begin = max(number + 1 - FIRST_NUMBER, 0)
        yield from enumerate(self._files[begin:], FIRST_NUMBER + begin)
        for name, (place, _) in tuple(self._below.items()):
            if place > number:
                yield place, name

    def below(self, name: str) -> "MadeDir | None":
        """The folder of this name."""
        found = self._below.get(name)
        return None if found is None else found[1]

    def _find(self, name: str) -> Node | None:
        return self.file(name) if name in self._files else self.below(name)

    @abstractmethod
    def file(self, name: str) -> Node | None:
        """One of its files."""

    # -- what is asked of it -------------------------------------------------------------------------------------

    def mkdir(self, name: str, rights: OwnRights) -> "MadeDir":
        """A new folder in it. TtmError: EEXIST, ENOENT it was removed, and as `make` says."""
        if name in self._below or name in self._files:
            raise TtmError(errno.EEXIST, f"{name[:80]!r} is there already")
        if self.gone():
            raise TtmError(errno.ENOENT, "this folder was removed")
        folder = self.make(name, rights)
        self.last += 1
        self._below[name] = self.last, folder
        return folder

    @abstractmethod
    def make(self, name: str, rights: OwnRights) -> "MadeDir":
        """What a new folder in it stands for."""

    async def rmdir(self, name: str) -> None:
        """Remove one. TtmError: ENOENT, ENOTDIR, and as `unmake` says."""
        folder = self.below(name)
        if folder is None:
            code = errno.ENOTDIR if name in self._files else errno.ENOENT
            raise TtmError(code, f"there is no folder {name[:80]!r} here")
        await self.unmake(folder)
        if self.below(name) is folder:
            del self._below[name]

    @abstractmethod
    async def unmake(self, folder: "MadeDir") -> None:
        """Remove what one of its folders stands for. TtmError(ENOENT): somebody else has, meanwhile."""

    def delegate(self, mode: int | None, uid: int | None, gid: int | None) -> None:
        """chmod and chown."""
        own = self.own
        own.bits = own.bits if mode is None else mode
        own.uid = own.uid if uid is None else uid
        own.gid = own.gid if gid is None else gid
