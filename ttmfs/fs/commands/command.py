"""Command: what a command file runs, what it works on, and the words that its lines are made of.

A command gets its words and returns a dict of plain values, or raises TtmError. The tables are in
`objects_and_ctl.py` and `spaces.py` beside this.
"""

import errno
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.driver.queues import DEFAULT, default_of
from ttmfs.errors import TtmError
from ttmfs.fs.commands.quoting import split_names
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import find_bo
from ttmfs.svm.spaces import Svm
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import Placement
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, parse_size

Result = dict[str, Any]

_SECONDS: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_OPTIONS: Final = ("no_wait_gpu", "interruptible")


@dataclass(frozen=True, slots=True)
class Machine:
    """What commands work on, and for whom; without a caller nobody's rights are asked for."""

    vdev: VirtualDevice
    names: Namespace
    svm: Svm
    caller: Opening | None = None

    def owns(self) -> bool:
        """Is the caller root, or who mounted?"""
        return self.caller is None or self.caller.uid in (0, *self.vdev.ttm.accounts.exempt)

    def queue(self, name: str = DEFAULT) -> str:
        """The queue that a command means: who does not own the device has a default one to himself."""
        return name if name != DEFAULT or self.caller is None or self.owns() else default_of(self.caller.uid)

    def bo(self, name: str, bits: int = 0) -> BufferObject:
        """The BO of a name, for a caller who needs `bits` (READ, WRITE) of it. TtmError ENOENT, EISDIR, EACCES."""
        if not bits or self.caller is None:
            return self.names.find(name).bo
        return find_bo(self.names, self.caller, name, bits).bo

    def bos(self, word: str, bits: int = 0) -> list[BufferObject]:
        """The BOs of NAME[,NAME…], as `bo`. TtmError(E2BIG) for more than MAX_NAMES."""
        return [self.bo(name, bits) for name in split_names(word)]


@dataclass(frozen=True, slots=True)
class Command:
    """`usage` is the grammar of the words, `does` a sentence, `examples` lines that work as they stand."""

    name: str
    usage: str
    does: str
    examples: tuple[str, ...]
    run: Callable[..., Awaitable[Result]]
    asks: bool = False
    """It changes nothing, so that read permission is enough."""

    def help(self, path: str) -> str:
        """What reading the command file prints."""
        lines = [f"{self.name} {self.usage}".rstrip(), f"  {self.does}"]
        lines += [f"  echo {example!r} > {path}" for example in self.examples]
        return "\n".join(lines) + "\n"


class Target(Protocol):
    """What a command of objects/ or svm_objects/ works on: a BO or an address space."""

    last_error: str


async def run_line(machine: Machine, command: Command, target: Target | None, words: list[str]) -> Result:
    """Run one line that was split into words."""
    if target is None:
        return await command.run(machine, words)
    return await command.run(machine, target, words)


# -- words -----------------------------------------------------------------------------------------------------------


def take_options(words: list[str], allowed: tuple[str, ...] = _OPTIONS) -> tuple[list[str], OperationContext]:
    """Take the options out of `words`."""
    ctx = OperationContext(no_wait_gpu="no_wait_gpu" in words and "no_wait_gpu" in allowed)
    return [word for word in words if word not in allowed], ctx


def no_more(words: list[str]) -> None:
    if words:
        raise TtmError(errno.EINVAL, f"{words[0][:80]!r} is not understood here: this command takes no such word")


def parse_places(machine: Machine, words: list[str]) -> tuple[Placement, OperationContext]:
    words, ctx = take_options(words)
    return machine.vdev.parse_placement(words), ctx


def page_range(bo: BufferObject, words: list[str]) -> tuple[int, int]:
    """(first page, pages; 0 pages: to the end) from [OFFSET LENGTH] in bytes."""
    if not words:
        return 0, 0
    if len(words) != 2:
        raise TtmError(errno.EINVAL, "say nothing, or OFFSET and LENGTH in bytes, as in 0 64K")
    offset, length = map(parse_size, words)
    if not length:
        raise TtmError(errno.EINVAL, "LENGTH is 0: say how many bytes, or nothing for all of it")
    if offset + length > max(bo.size, 1):
        raise TtmError(errno.EINVAL, f"{words[0]}+{words[1]} is not within the {bo.size} bytes of the BO")
    first = offset >> PAGE_SHIFT
    return first, ((offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT) - first


def parse_pages(word: str) -> int:
    """Pages that BYTES need; a very large number for `all`."""
    return 1 << 62 if word == "all" else (parse_size(word) + PAGE_SIZE - 1) >> PAGE_SHIFT


def parse_seconds(word: str) -> float:
    if not _SECONDS.fullmatch(word):
        raise TtmError(errno.EINVAL, f"{word[:80]!r} is no number of seconds")
    return float(word)


def take_backup_flags(words: list[str]) -> tuple[list[str], BackupFlags]:
    """Take [purge] [writeback] out of `words`."""
    flags = BackupFlags(purge="purge" in words, writeback="writeback" in words, allow_move=True)
    if flags.purge and flags.writeback:
        raise TtmError(errno.EINVAL, "purge stores nothing that could be written back: say one of them")
    return [word for word in words if word not in ("purge", "writeback")], flags
