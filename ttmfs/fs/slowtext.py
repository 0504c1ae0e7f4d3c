"""Slow texts: files whose text takes so long to make that others must run meanwhile, and triggers that do work."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.nodes import Handle, VirtualFile
from ttmfs.fs.opening import Opening
from ttmfs.fs.rights import Rights
from ttmfs.sync.pace import Pace

T = TypeVar("T")
SlowText = Callable[[], Awaitable[bytes]]


class SlowTextHandle:
    """A snapshot of some text, made at the first read at offset 0; `trigger` does something when it is written."""

    def __init__(self, text: SlowText, trigger: Callable[[], Awaitable[None]] | None = None) -> None:
        self._text = text
        self._trigger = trigger
        self._snapshot: bytes | None = None
        self._making = trio.Lock()

    async def read(self, offset: int, size: int) -> bytes:
        """Part of the snapshot."""
        async with self._making:
            if self._snapshot is None or offset == 0:
                self._snapshot = await self._text()
            return self._snapshot[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        """Whatever is written does the same. TtmError as the trigger's."""
        del offset
        assert self._trigger is not None
        await self._trigger()
        return len(data)


def slow_file(
    text: SlowText, rights: Rights, *, trigger: Callable[[], Awaitable[None]] | None = None
) -> VirtualFile:
    """A file of such a text; it can be written when it has a trigger."""

    def open_handle(opening: Opening) -> Handle:
        del opening
        return SlowTextHandle(text, trigger)

    return VirtualFile(open_handle, rights, writable=trigger is not None)


async def paced_lines(items: Sequence[T], line: Callable[[T], str]) -> bytes:
    """One line for each item, made a few at a time."""
    pace = Pace()
    lines: list[str] = []
    for item in items:
        lines.append(line(item))
        await pace.step()
    return "".join(lines).encode("utf-8", "surrogateescape")


async def bounded(work: Callable[[], Awaitable[None]], seconds: float, timed_out: TtmError) -> None:
    """Run `work` for at most `seconds`; `timed_out` when that is not enough."""
    with trio.move_on_after(seconds) as scope:
        await work()
    if scope.cancelled_caught:
        raise timed_out
