"""Nodes: what the mount's tree is made of apart from BO files.

A VirtualDir lists and finds children; a VirtualFile opens a Handle. Their contents are made when they are asked for
and the kernel caches nothing: direct_io, timeouts 0. It may keep only what never changes: the name of a folder that
stays as long as the mount, and attributes of which none ever moves.

Each has a key, which its inode number (st_ino) is made of. But every LOOKUP of a file is told to the kernel as another
inode (see `requests/inodes.py`): it runs all writers of one inode one after another, and has one size and one page
cache for all who read it.

Sizes: an open file has that of the text which its OPEN took; one that is not open that of the text as it is now, or,
where making it is dear, as it was when it was last opened. LOOKUP and READDIRPLUS make none.
"""

import stat
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from ttmfs.fs.kernel.opening import JUST_LOOKING, Opening
from ttmfs.fs.kernel.rights import Rights

UNKNOWN_LENGTH: Final = 4096
"""What a text that was never made is said to be long."""

_LENGTHS_KEPT: Final = 4096


class Node(Protocol):
    """Anything with an inode. `mode` includes the file type."""

    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class NameTable(Protocol):
    """The names of a VirtualDir, each with a number that it keeps and that no other ever has (see `listing.py`)."""

    @property
    def last(self) -> int:
        """The greatest number given so far."""
        ...

    @property
    def folders(self) -> int:
        """How many of the names are folders."""
        ...

    def after(self, number: int) -> Iterable[tuple[int, str]]:
        """(number, name) of all with a greater number, in its order."""
        ...


class _Virtual:
    """What has its rights from somewhere else, as they are there at each moment."""

    _type = 0

    def __init__(self, rights: Rights) -> None:
        self.rights = rights

    @property
    def mode(self) -> int:
        """Type and permissions."""
        return self._type | self.rights.bits

    @property
    def uid(self) -> int:
        """Its owner."""
        return self.rights.uid

    @property
    def gid(self) -> int:
        """Its group."""
        return self.rights.gid


class VirtualDir(_Virtual):
    """A directory whose children are made on demand. `key` identifies it, so that it keeps its inode number."""

    _type = stat.S_IFDIR

    def __init__(
        self,
        key: str,
        find: "Callable[[str], Node | None]",
        names: NameTable,
        rights: Rights,
        *,
        gone: Callable[[], bool] = lambda: False,
        stays: bool = False,
    ) -> None:
        super().__init__(rights)
        self.key = key
        self.stays = stays
        """Its name means it as long as there is the mount."""
        self.gone = gone
        """What it stands for was removed, while somebody has it as working directory: nothing can be made in it."""
        self.find = find
        self.names = names
        self.above = 0
        """Inode number of the folder that it was found in."""

    def child(self, name: str) -> "Node | None":
        """What has this name now."""
        node = self.find(name)
        if isinstance(node, VirtualFile):
            node.key = f"{self.key}/{name}"
        return node


class Handle(Protocol):
    """An open virtual file."""

    async def take(self) -> None:
        """It was opened for reading: take the snapshot that is going to be read."""
        ...

    @property
    def size(self) -> int:
        """Bytes that there are to read from its start on (st_size); 0 when only reading tells."""
        ...

    def told(self) -> None:
        """Whoever has it open asked for its size, and may go by it."""
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes at `offset`."""
        ...

    async def write(self, offset: int, data: bytes) -> int:
        """All of `data`, or TtmError."""
        ...


class Lengths:
    """How long dear texts were when they were last made, by the keys of their files; of the latest 4096."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, int] = OrderedDict()

    def last(self, key: str) -> int:
        """UNKNOWN_LENGTH of one that was never made."""
        return self._last.get(key, UNKNOWN_LENGTH)

    def note(self, key: str, length: int) -> None:
        """It was made."""
        self._last[key] = length
        self._last.move_to_end(key)
        if len(self._last) > _LENGTHS_KEPT:
            self._last.popitem(last=False)


class VirtualFile(_Virtual):
    """A file whose handle is made by `open_handle(opening)`.

    `writable`: its handles take what is written. `lengths`: its text is dear to make.
    """

    _type = stat.S_IFREG

    def __init__(
        self,
        open_handle: Callable[[Opening], Handle],
        rights: Rights,
        *,
        writable: bool = False,
        lengths: Lengths | None = None,
    ) -> None:
        super().__init__(rights)
        self.open_handle = open_handle
        self.writable = writable
        self.key = ""
        """Identifies it among all nodes; see VirtualDir.child."""
        self.told = 0
        """The last answer of `length`."""
        self._lengths = lengths
        self._opened: Callable[[], Handle | None] = lambda: None

    async def open(self, opening: Opening) -> Handle:
        """A handle for this OPEN."""
        handle = self.open_handle(opening)
        if opening.reads:
            await handle.take()
            if self._lengths is not None:
                self._lengths.note(self.key, handle.size)
        self._opened = weakref.ref(handle)
        return handle

    async def length(self) -> int:
        """st_size, for a GETATTR."""
        self.told = await self._length()
        return self.told

    async def _length(self) -> int:
        handle = self._opened()
        if handle is not None:
            handle.told()
            return handle.size
        if self._lengths is not None:
            return self._lengths.last(self.key)
        handle = self.open_handle(JUST_LOOKING)
        await handle.take()
        return handle.size
