"""Handles: open virtual files: texts, settings that take a value, commands that run lines; see ttmfs.fs.tree.nodes.

What is written is answered: reading the same open file then gives one JSON line per line that ran. Offsets mean nothing
to an answer, the first read after the write begins it, wherever the file position is; so it has no size either.
"""

import errno
import json
from collections.abc import Awaitable, Callable

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Result
from ttmfs.fs.commands.quoting import MAX_WRITE
from ttmfs.fs.commands.results import KeptResults
from ttmfs.fs.kernel.opening import Opening


def encoded(text: str | bytes) -> bytes:
    """A text as it is read from a file; names in it are bytes again."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


class Answer:
    """What came of the last write into an open file, to be read from it."""

    def __init__(self) -> None:
        self._text: bytes | None = None
        self._base: int | None = None

    @property
    def given(self) -> bool:
        """Was anything written?"""
        return self._text is not None

    def __len__(self) -> int:
        return 0 if self._text is None else len(self._text)

    def give(self, text: str) -> None:
        """The next read begins this one."""
        self._text = text.encode("ascii")
        self._base = None

    def drop(self) -> None:
        """As if nothing was written."""
        self._text = None

    def read(self, offset: int, size: int) -> bytes:
        """Part of it, wherever the file position was."""
        assert self._text is not None
        if self._base is None or offset < self._base:
            self._base = offset
        start = offset - self._base
        return self._text[start : start + size]


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


class _Pass:
    """How one text was read so far: who reads from its start once more is to have a new one.

    Not so who goes by its length, or has a part of it: who comes to the start from behind and then reads from there, or
    asks how long it is, reads so much, and reads it again (tail does either); who has looked at the beginning and then
    reads more (less, file).
    """

    __slots__ = ("_exact", "_from_behind", "_looked", "_started", "_told")

    def __init__(self) -> None:
        self._started = self._from_behind = self._told = self._exact = False
        self._looked = 0
        """Bytes asked for by a last READ that was from the start and not to the end."""

    def told(self) -> None:
        """Somebody has asked how long it is."""
        self._told, self._exact = True, False

    def ends(self, offset: int, size: int) -> bool:
        """Does this READ want another text?"""
        return self._started and not offset and not self._exact and not 0 < self._looked < size

    def goes_on(self, offset: int, size: int, length: int) -> None:
        """It was answered from the text, which has `length` bytes."""
        if offset:
            self._from_behind |= not self._started
        else:
            self._started, self._from_behind = not self._from_behind, False
        self._looked = size if not offset and size < length else 0
        self._exact = self._told and not offset and size == length
        self._told = False


class TextHandle:
    """An open text; `store` takes what is written, and may say what came of it.

    OPEN takes a snapshot; reading it from the start once more takes a new one (see _Pass).
    """

    def __init__(self, text: Callable[[], str | bytes], store: Callable[[str], Result | None] | None = None) -> None:
        self._text = text
        self._store = store
        self._answer = Answer()
        self._snapshot: bytes | None = None
        self._making = trio.Lock()
        self._pass = _Pass()
        self._given_up = False

    def give_up(self) -> None:
        """See KeptResults."""
        self._snapshot = None
        self._given_up = True

    async def take(self) -> None:
        """See Handle."""
        self._snapshot = await self._made()
        self._pass = _Pass()

    async def _made(self) -> bytes:
        return encoded(self._text())

    @property
    def size(self) -> int:
        """See Handle."""
        return 0 if self._answer.given or self._snapshot is None else len(self._snapshot)

    def told(self) -> None:
        """See Handle."""
        self._pass.told()

    async def read(self, offset: int, size: int) -> bytes:
        """Part of the answer, or of the snapshot. TtmError(ENOBUFS) for one that is not kept."""
        if self._answer.given:
            return self._answer.read(offset, size)
        if self._given_up:
            raise TtmError(errno.ENOBUFS, "this text was not read in time: later ones of yours took its room")
        async with self._making:
            if self._snapshot is None or self._pass.ends(offset, size):
                await self.take()
            assert self._snapshot is not None
            self._pass.goes_on(offset, size, len(self._snapshot))
            return self._snapshot[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Set the value; a trailing newline is dropped. TtmError: E2BIG, and what `store` raises."""
        del offset
        outcome = CommandOutcome()
        try:
            if len(data) > MAX_WRITE:
                raise TtmError(errno.E2BIG, f"a write of {len(data)} bytes: write at most {MAX_WRITE} at a time")
            outcome.succeeded(1, await self._stored(data.decode("utf-8", "surrogateescape")))
        except TtmError as error:
            outcome.failed(1, error)
            raise
        finally:
            self._answer.give(outcome.text)
        return len(data)

    async def _stored(self, text: str) -> Result:
        assert self._store is not None
        return self._store(text) or {}


class CommandHandle:
    """One open command file: lines written run in order; reading gives the answer to the last write, else the help.

    What is opened for writing only keeps no answer.
    """

    def __init__(
        self,
        help_text: Callable[[], str],
        run_lines: Callable[[bytes], Awaitable[CommandOutcome]],
        opening: Opening,
        results: KeptResults,
    ) -> None:
        self._text = TextHandle(help_text)
        self._run_lines = run_lines
        self._opening = opening
        self._results = results
        self._answer = Answer()
        self._given_up = False

    async def take(self) -> None:
        """See Handle."""
        await self._text.take()

    @property
    def size(self) -> int:
        """See Handle."""
        return 0 if self._answer.given or self._given_up else self._text.size

    def told(self) -> None:
        """See Handle."""
        self._text.told()

    async def read(self, offset: int, size: int) -> bytes:
        """Part of the answer, or of the text when nothing was written. TtmError(ENOBUFS) for one that is not kept."""
        if self._given_up:
            raise TtmError(errno.ENOBUFS, "this result was not read in time: later ones of yours took its room")
        return self._answer.read(offset, size) if self._answer.given else await self._text.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        """Run all lines of `data`; the errno of the first that fails."""
        del offset
        outcome = await self._run_lines(data)
        if self._opening.reads:
            self._given_up = False
            self._answer.give(outcome.text)
            self._results.keep(self._opening.uid, self, len(self._answer))
        if outcome.error is not None:
            raise outcome.error
        return len(data)

    def give_up(self) -> None:
        """See KeptResults."""
        self._answer.drop()
        self._given_up = True

    def close(self) -> None:
        """The last descriptor is gone."""
        self._results.drop(self._opening.uid, self)
