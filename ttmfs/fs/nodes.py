"""Nodes and handles: what the mount's tree is made of apart from BO files.

A VirtualDir lists and finds children; a VirtualFile opens a Handle. Their contents are made when they are asked for
and nothing is cached: direct_io, timeouts 0, size 0. Every LOOKUP of a virtual file that can be written gets a new
inode number, or the kernel would run all writers of one command file one after another; others keep theirs, as cp
expects.
"""

import errno
import json
import stat
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from ttmfs.errors import TtmError
from ttmfs.fs.opening import Opening
from ttmfs.fs.results import KeptResults
from ttmfs.fs.rights import Rights
from ttmfs.fs.words import MAX_WRITE


class Node(Protocol):
    """Anything with an inode. `mode` includes the file type."""

    @property
    def mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class NameTable(Protocol):
    """The names of a VirtualDir, each with a number that it keeps and that no other ever has (see ttmfs.fs.listing)."""

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
    ) -> None:
        super().__init__(rights)
        self.key = key
        self.gone = gone
        """What it stands for was removed, while somebody has it as working directory: nothing can be made in it."""
        self.find = find
        self.names = names
        self.above = 0
        """Inode number of the folder that it was found in."""


class Handle(Protocol):
    """An open virtual file."""

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes at `offset`."""
        ...

    async def write(self, offset: int, data: bytes) -> int:
        """All of `data`, or TtmError."""
        ...


class VirtualFile(_Virtual):
    """A file whose handle is made by `open_handle(opening)`. `writable`: its handles take what is written."""

    _type = stat.S_IFREG

    def __init__(
        self, open_handle: Callable[[Opening], Handle], rights: Rights, *, writable: bool = False
    ) -> None:
        super().__init__(rights)
        self.open_handle = open_handle
        self.writable = writable
        self.key = ""
        """Identifies it, so that it keeps its inode number; empty: a new one each time."""

    def open(self, opening: Opening) -> Handle:
        """A handle for this OPEN."""
        return self.open_handle(opening)


class TextHandle:
    """A snapshot of some text, taken at the first read at offset 0; `store` takes what is written.

    The first read after a write gives the text as it is then, from its start, wherever the file position is.
    """

    def __init__(self, text: Callable[[], str | bytes], store: Callable[[str], None] | None = None) -> None:
        self._text = text
        self._store = store
        self._snapshot: bytes | None = None
        self._base: int | None = 0

    async def read(self, offset: int, size: int) -> bytes:
        """Part of the snapshot."""
        if self._base is None or offset < self._base:
            self._base = offset
            self._snapshot = None
        if self._snapshot is None or offset == self._base:
            self._snapshot = self._made()
        start = offset - self._base
        return self._snapshot[start : start + size]

    def _made(self) -> bytes:
        text = self._text()
        return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")

    async def write(self, offset: int, data: bytes) -> int:
        """Set the value; a trailing newline is dropped."""
        del offset
        self._base = None
        if len(data) > MAX_WRITE:
            raise TtmError(errno.E2BIG, f"a write of {len(data)} bytes: write at most {MAX_WRITE} at a time")
        assert self._store is not None
        self._store(data.decode("utf-8", "surrogateescape"))
        return len(data)


class SettingHandle(TextHandle):
    """An open file of ctl/ that shows a state and takes words that change it: after a write, reading gives its result
    as one JSON line, as a command file does."""

    def __init__(self, text: Callable[[], str | bytes], store: Callable[[str], None]) -> None:
        super().__init__(text, store)
        self._result: bytes | None = None

    def _made(self) -> bytes:
        return super()._made() if self._result is None else self._result

    async def write(self, offset: int, data: bytes) -> int:
        """Change the state, or TtmError."""
        outcome = CommandOutcome()
        try:
            written = await super().write(offset, data)
            outcome.succeeded(1, {})
        except TtmError as error:
            outcome.failed(1, error)
            raise
        finally:
            self._result = outcome.text.encode("ascii")
        return written


class CommandHandle:
    """One open command file: lines written run in order; reading gives the result of the last write, else the help.

    Offsets mean nothing: the first read after a write starts the result, wherever the file position is. What is opened
    for writing only keeps no result.
    """

    def __init__(
        self,
        help_text: Callable[[], str],
        run_lines: Callable[[bytes], Awaitable["CommandOutcome"]],
        opening: Opening,
        results: KeptResults,
    ) -> None:
        self._help = help_text
        self._run_lines = run_lines
        self._opening = opening
        self._results = results
        self._result: bytes | None = None
        self._given_up = False
        self._base: int | None = None

    async def read(self, offset: int, size: int) -> bytes:
        """Part of the result, or of the help when nothing was written. TtmError(ENOBUFS) for one that is not kept."""
        if self._given_up:
            raise TtmError(errno.ENOBUFS, "this result was not read in time: later ones of yours took its room")
        if self._result is None:
            self._result = self._help().encode()
            self._base = 0
        if self._base is None or offset < self._base:
            self._base = offset
        start = offset - self._base
        return self._result[start : start + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Run all lines of `data`; the errno of the first that fails."""
        del offset
        outcome = await self._run_lines(data)
        self._base = None
        if self._opening.reads:
            self._given_up = False
            self._result = outcome.text.encode("ascii")
            self._results.keep(self._opening.uid, self, len(self._result))
        if outcome.error is not None:
            raise outcome.error
        return len(data)

    def give_up(self) -> None:
        """See KeptResults."""
        self._result = None
        self._given_up = True

    def close(self) -> None:
        """The last descriptor is gone."""
        self._results.drop(self._opening.uid, self)


class CommandOutcome:
    """What a write into a command file came to: one JSON line per line that ran, and the error that stopped it.

    `numbered`: the write had several lines, and each result says which is its.
    """

    __slots__ = ("_lines", "error", "numbered", "size")

    def __init__(self, *, numbered: bool = False) -> None:
        self.numbered = numbered
        self.error: TtmError | None = None
        self._lines: list[str] = []
        self.size = 0
        """Characters of the results so far."""

    def succeeded(self, line: int, result: dict[str, object]) -> None:
        """Line number `line` (from 1) succeeded."""
        self._add({"ok": True}, line, result)

    def failed(self, line: int, error: TtmError) -> None:
        """Line number `line` failed; nothing runs after it."""
        self.error = error
        self._add({"ok": False}, line, {"errno": error.name, "error": error.message})

    def _add(self, outcome: dict[str, object], line: int, result: dict[str, object]) -> None:
        # Made at once: all of them together at the end would be long work without a pause.
        text = json.dumps({**outcome, **({"line": line} if self.numbered else {}), **result}) + "\n"
        self._lines.append(text)
        self.size += len(text)

    @property
    def text(self) -> str:
        """JSON lines."""
        return "".join(self._lines)
