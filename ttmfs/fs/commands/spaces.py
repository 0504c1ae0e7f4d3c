"""Commands of svm_objects/NAME/: the device's side of an address space, as a table like `objects_and_ctl.py`.

The parser, the help that a command file prints and the mount's README come from SPACE_COMMANDS and GPU_OPERATIONS.
Addresses and lengths are bytes, written as sizes are (`4096`, `0x1000`, `64K`, `2M`).
"""

import errno
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.svm import calls
from ttmfs.svm.names import SpaceFile
from ttmfs.svm.space import AddressSpace
from ttmfs.units import parse_size

MAX_READ: Final = 1 << 20
"""Bytes that one `read` brings back: its result is a line of twice as many characters."""

_HEX: Final = re.compile(r"([0-9a-fA-F]{2})+")
_INTEGER: Final = re.compile(r"-?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")
_MADVISE: Final[Mapping[str, tuple[str, ...]]] = {
    "preferred": ("vram", "system", "fault"),
    "atomic": ("device", "global", "cpu", "undefined"),
    "migration": ("all", "system_only"),
}
_PREFETCH: Final = ("vram", "system", "preferred")


class OpenedSpace:
    """What a command works on: a space, through a command file that somebody has opened."""

    __slots__ = ("_page_cache", "file", "may_read")

    def __init__(self, file: SpaceFile, page_cache: PageCache | None, *, may_read: bool) -> None:
        self.file = file
        self._page_cache = page_cache
        self.may_read = may_read
        """The opener may read svm/NAME: who may only write it is not told what was there."""

    @property
    def space(self) -> AddressSpace:
        """TtmError(EFAULT) once it has no name any more."""
        if self.file.unlinked:
            raise TtmError(errno.EFAULT, f"the address space {self.file.space.name} was unlinked")
        return self.file.space

    def worked(self) -> None:
        """The device may have given memory to it: st_blocks shows that."""
        self.file.attributes_changed()

    @property
    def last_error(self) -> str:
        """Why the last command failed."""
        return self.file.last_error

    @last_error.setter
    def last_error(self, message: str) -> None:
        self.file.last_error = message


# -- words -----------------------------------------------------------------------------------------------------------


def _range(words: list[str], usage: str) -> tuple[int, int]:
    """(address, length) from ADDR LEN. TtmError(EINVAL)."""
    if len(words) != 2:
        raise TtmError(errno.EINVAL, f"say {usage}: an address and a length in bytes, as in 4M 64K")
    address, length = map(parse_size, words)
    if not length:
        raise TtmError(errno.EINVAL, "LEN is 0: say how many bytes")
    return address, length


def _one_of(word: str, allowed: tuple[str, ...], what: str) -> str:
    if word not in allowed:
        raise no_such(word, what, allowed)
    return word


def _byte(word: str) -> int:
    value = parse_size(word)
    if value > 255:
        raise TtmError(errno.EINVAL, f"{word[:40]!r}: a byte is 0 to 255")
    return value


def _u64(word: str) -> int:
    """A number as the device adds it: modulo 2**64."""
    value = int(word, 16 if "x" in word.lower() else 10) if _INTEGER.fullmatch(word) and word.isascii() else 1 << 64
    if not -(1 << 63) <= value < 1 << 64:
        raise TtmError(errno.EINVAL, f"{word[:40]!r}: say a number of at most 64 bits, decimal or 0x")
    return value % (1 << 64)


# -- gpu -------------------------------------------------------------------------------------------------------------


async def _gpu_fill(space: AddressSpace, words: list[str], usage: str, wait: bool) -> Result:
    if len(words) != 3:
        raise TtmError(errno.EINVAL, f"say {usage}")
    address, length = _range(words[:2], usage)
    return await calls.gpu_fill(space, address, length, _byte(words[2]), wait=wait)


async def _gpu_write(space: AddressSpace, words: list[str], usage: str, wait: bool) -> Result:
    if len(words) != 2:
        raise TtmError(errno.EINVAL, f"say {usage}")
    if not _HEX.fullmatch(words[1]):
        raise TtmError(errno.EINVAL, f"{words[1][:40]!r}: say bytes as pairs of hexadecimal digits, as in 00ff10")
    return await calls.gpu_write(space, parse_size(words[0]), bytes.fromhex(words[1]), wait=wait)


async def _gpu_read(space: AddressSpace, words: list[str], usage: str, wait: bool) -> Result:
    address, length = _range(words, usage)
    if length > MAX_READ:
        raise TtmError(errno.E2BIG, f"read brings at most {MAX_READ} bytes back: use checksum, or svm/{space.name}")
    _must_wait(wait, "read")
    return await calls.gpu_read(space, address, length)


async def _gpu_atomic_add(space: AddressSpace, words: list[str], usage: str, wait: bool) -> Result:
    if len(words) != 2:
        raise TtmError(errno.EINVAL, f"say {usage}")
    return await calls.gpu_atomic_add(space, parse_size(words[0]), _u64(words[1]), wait=wait)


async def _gpu_checksum(space: AddressSpace, words: list[str], usage: str, wait: bool) -> Result:
    address, length = _range(words, usage)
    _must_wait(wait, "checksum")
    return await calls.gpu_checksum(space, address, length)


def _must_wait(wait: bool, operation: str) -> None:
    if not wait:
        raise TtmError(errno.EINVAL, f"{operation} is asked for its value: it has none before it is done (no nowait)")


@dataclass(frozen=True, slots=True)
class GpuOperation:
    """`writes` says whether it is for who may write the space (`gpu`), or for who may read it (`gpu_read`)."""

    usage: str
    writes: bool
    run: Callable[[AddressSpace, list[str], str, bool], Awaitable[Result]]


GPU_OPERATIONS: Final[Mapping[str, GpuOperation]] = {
    "fill": GpuOperation("fill ADDR LEN BYTE [nowait]", True, _gpu_fill),
    "write": GpuOperation("write ADDR HEXBYTES [nowait]", True, _gpu_write),
    "read": GpuOperation("read ADDR LEN", False, _gpu_read),
    "atomic_add": GpuOperation("atomic_add ADDR VALUE [nowait]", True, _gpu_atomic_add),
    "checksum": GpuOperation("checksum ADDR LEN", False, _gpu_checksum),
}


def _usage(writes: bool) -> str:
    return " | ".join(operation.usage for operation in GPU_OPERATIONS.values() if operation.writes == writes)


async def _gpu(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    return await _operate(opened, words, writes=True)


async def _gpu_read_file(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    return await _operate(opened, words, writes=False)


async def _operate(opened: OpenedSpace, words: list[str], *, writes: bool) -> Result:
    wait = "nowait" not in words
    words = [word for word in words if word != "nowait"]
    operation = GPU_OPERATIONS.get(words[0]) if words else None
    if operation is None:
        known = [name for name, operation in GPU_OPERATIONS.items() if operation.writes == writes]
        raise no_such(words[0] if words else "", "operation of the device", known)
    if operation.writes != writes:
        other = "gpu, which needs write permission" if operation.writes else "gpu_read, which needs read permission"
        raise TtmError(errno.EACCES, f"{words[0]} is not for this file: write it into {other}")
    try:
        result = await operation.run(opened.space, words[1:], operation.usage, wait)
    finally:
        opened.worked()
    if writes and not opened.may_read:
        result.pop("value", None)
    return result


# -- the others ------------------------------------------------------------------------------------------------------


async def _prefetch(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = _range(words[:2], "ADDR LEN vram|system|preferred")
    region = _one_of(" ".join(words[2:]), _PREFETCH, "place to prefetch to")
    try:
        return await calls.prefetch(opened.space, address, length, region)
    finally:
        opened.worked()


async def _madvise(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = _range(words[:2], "ADDR LEN KEY=VALUE…")
    advice: dict[str, Any] = {}
    for word in words[2:]:
        key, equals, value = word.partition("=")
        if not equals or key not in _MADVISE:
            raise TtmError(errno.EINVAL, f"{word[:80]!r} is no advice: say {'=, '.join(_MADVISE)}=")
        if key in advice:
            raise TtmError(errno.EINVAL, f"{key}= is given twice")
        advice[key] = _one_of(value, _MADVISE[key], f"value of {key}=")
    if not advice:
        raise TtmError(errno.EINVAL, f"say what is advised: {'=, '.join(_MADVISE)}=")
    return await calls.madvise(opened.space, address, length, **advice)


async def _map(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    read_only = words[2:] == ["ro"]
    address, length = _range(words[:2] if read_only else words, "ADDR LEN [ro]")
    return await calls.map_range(opened.space, address, length, read_only=read_only)


async def _unmap(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = _range(words, "ADDR LEN")
    result = await calls.unmap(opened.space, address, length)
    opened.file.content_changed()
    opened.worked()
    return result


SPACE_COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            "gpu",
            _usage(writes=True),
            "The device writes to the space and faults as it goes: its ranges migrate to vram. The result has "
            "bytes_moved and faults, and for who may read the space the `value` that atomic_add found; with nowait its "
            "fence, at once (ctl/wait). What reads is in gpu_read.",
            ("fill 4M 2M 7", "write 0x400000 00ff10", "atomic_add 4M 1"),
            _gpu,
        ),
        Command(
            "gpu_read",
            _usage(writes=False),
            "The device reads the space and faults as it goes: its ranges migrate to vram. The result has bytes_moved "
            "and faults, `data` (hexadecimal) of read, `value` of checksum.",
            ("read 4M 16", "checksum 4M 2M"),
            _gpu_read_file,
            asks=True,
        ),
        Command(
            "prefetch",
            "ADDR LEN " + "|".join(_PREFETCH),
            "Migrate the ranges there now; ENODATA when they cannot be had there. preferred: where madvise says.",
            ("4M 2M vram", "4M 2M system"),
            _prefetch,
        ),
        Command(
            "madvise",
            "ADDR LEN " + " ".join(f"[{key}={'|'.join(values)}]" for key, values in _MADVISE.items()),
            "Where the pages shall be and who does atomics; moves nothing now. ADDR and LEN in whole pages.",
            ("4M 2M preferred=vram", "0 64M atomic=device migration=all"),
            _madvise,
        ),
        Command(
            "map",
            "ADDR LEN [ro]",
            "Map pages that were unmapped; ro: the device may only read them (EPERM).",
            ("4M 2M", "8M 2M ro"),
            _map,
        ),
        Command(
            "unmap",
            "ADDR LEN",
            "As munmap: the content is gone, the device gets ENOENT, the CPU reads zeros; a CPU store maps anew.",
            ("4M 1M",),
            _unmap,
        ),
    )
}
