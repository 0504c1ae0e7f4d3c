"""Slow texts: files whose text takes so long to make that others must run meanwhile, and triggers that do work."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Result
from ttmfs.fs.commands.handles import TextHandle
from ttmfs.fs.kernel.rights import Rights
from ttmfs.fs.tree.nodes import Lengths, VirtualFile
from ttmfs.sync.breather import Breather

T = TypeVar("T")
SlowText = Callable[[], Awaitable[bytes]]


class SlowTextHandle(TextHandle):
    """An open slow text; `trigger` does something when it is written."""

    def __init__(self, text: SlowText, trigger: Callable[[], Awaitable[None]] | None = None) -> None:
        super().__init__(bytes)
        self._slow_text = text
        self._trigger = trigger

    async def _made(self) -> bytes:
        return await self._slow_text()

    async def _stored(self, text: str) -> Result:
        """Whatever is written does the same. TtmError as the trigger's."""
        del text
        assert self._trigger is not None
        await self._trigger()
        return {}


def slow_file(text: SlowText, rights: Rights, lengths: Lengths | None) -> VirtualFile:
    """A file of such a text; where `lengths` are kept it is not made for a mere look at its size."""
    return VirtualFile(lambda _opening: SlowTextHandle(text), rights, lengths=lengths)


def trigger_file(text: SlowText, trigger: Callable[[], Awaitable[None]], rights: Rights) -> VirtualFile:
    """A file that does something when it is written, and says what came of the last time."""
    return VirtualFile(lambda _opening: SlowTextHandle(text, trigger), rights, writable=True)


async def paced_lines(items: Sequence[T], line: Callable[[T], str]) -> bytes:
    """One line for each item, made a few at a time."""
    breather = Breather()
    lines: list[str] = []
    for item in items:
        lines.append(line(item))
        await breather.step()
    return "".join(lines).encode("utf-8", "surrogateescape")


async def bounded(work: Callable[[], Awaitable[None]], seconds: float, timed_out: TtmError) -> None:
    """Run `work` for at most `seconds`; `timed_out` when that is not enough."""
    with trio.move_on_after(seconds) as scope:
        await work()
    if scope.cancelled_caught:
        raise timed_out
