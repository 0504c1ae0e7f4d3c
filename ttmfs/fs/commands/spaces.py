"""Commands of svm_objects/NAME/: the device's side of an address space, as a table like `objects_and_ctl.py`.

The parser, the help that a command file prints and the mount's README come from SPACE_COMMANDS and, in `gpu_words.py`,
GPU_OPERATIONS.
Addresses and lengths are bytes, written as sizes are (`4096`, `0x1000`, `64K`, `2M`).
"""

import errno
from collections.abc import Mapping
from typing import Any, Final

from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import Command, Machine, Result, no_more
from ttmfs.fs.commands.gpu_words import GpuWords, gpu_usage, parse_range, take_operation
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.svm import calls
from ttmfs.svm.backup import backup, restore
from ttmfs.svm.names import SpaceFile
from ttmfs.svm.space import AddressSpace

_MADVISE: Final[Mapping[str, tuple[str, ...]]] = {
    "preferred": ("vram", "REGION", "system", "fault"),
    "atomic": ("device", "global", "cpu", "undefined"),
    "migration": ("all", "system_only"),
}
"""As help has it; REGION: another one of the device's memory."""
_PREFETCH: Final = ("vram", "REGION", "system", "preferred")


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


# -- gpu -------------------------------------------------------------------------------------------------------------


async def _gpu(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    return await _operate(opened, words, writes=True)


async def _gpu_read_file(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    return await _operate(opened, words, writes=False)


async def _operate(opened: OpenedSpace, words: list[str], *, writes: bool) -> Result:
    asked, wait = take_operation(words, writes)
    try:
        result = await _run(opened.space, asked, wait)
    finally:
        opened.worked()
    if writes and not opened.may_read:
        result.pop("value", None)
    return result


async def _run(space: AddressSpace, asked: GpuWords, wait: bool) -> Result:
    if asked.kind == "fill":
        return await calls.gpu_fill(space, asked.address, asked.length, asked.value, wait=wait)
    if asked.kind == "write":
        return await calls.gpu_write(space, asked.address, asked.data, wait=wait)
    if asked.kind == "atomic_add":
        return await calls.gpu_atomic_add(space, asked.address, asked.value, wait=wait)
    if asked.kind == "read":
        return await calls.gpu_read(space, asked.address, asked.length)
    return await calls.gpu_checksum(space, asked.address, asked.length)


# -- the others ------------------------------------------------------------------------------------------------------


async def _prefetch(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = parse_range(words[:2], f"ADDR LEN {'|'.join(_PREFETCH)}")
    try:
        return await calls.prefetch(opened.space, address, length, " ".join(words[2:]))
    finally:
        opened.worked()


async def _madvise(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = parse_range(words[:2], f"ADDR LEN {'=… '.join(_MADVISE)}=…")
    advice: dict[str, Any] = {}
    for word in words[2:]:
        key, equals, value = word.partition("=")
        if not equals or key not in _MADVISE:
            raise no_such(f"{key}=" if key else word, "advice", (f"{name}=" for name in _MADVISE))
        if key in advice:
            raise TtmError(errno.EINVAL, f"{key}= is given twice")
        advice[key] = value
    if not advice:
        raise TtmError(errno.EINVAL, f"say what is advised: {'=, '.join(_MADVISE)}=")
    return await calls.madvise(opened.space, address, length, **advice)


async def _map(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    read_only = words[2:] == ["ro"]
    address, length = parse_range(words[:2] if read_only else words, "ADDR LEN [ro]")
    return await calls.map_range(opened.space, address, length, read_only=read_only)


async def _unmap(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    address, length = parse_range(words, "ADDR LEN")
    result = await calls.unmap(opened.space, address, length)
    opened.file.content_changed()
    opened.worked()
    return result


async def _backup(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    no_more([word for word in words if word != "writeback"])
    return await backup(opened.space, writeback="writeback" in words)


async def _restore(machine: Machine, opened: OpenedSpace, words: list[str]) -> Result:
    del machine
    no_more(words)
    return await restore(opened.space)


SPACE_COMMANDS: Final[Mapping[str, Command]] = {
    command.name: command
    for command in (
        Command(
            "gpu",
            gpu_usage(True),
            "The device writes to the space and faults as it goes: its ranges migrate to vram. The result has "
            "bytes_moved and faults, and for who may read the space the `value` that atomic_add found; with nowait its "
            "fence, at once (ctl/wait). What reads is in gpu_read.",
            ("fill 4M 2M 7", "write 0x400000 00ff10", "atomic_add 4M 1"),
            _gpu,
        ),
        Command(
            "gpu_read",
            gpu_usage(False),
            "The device reads the space and faults as it goes: its ranges migrate to vram. The result has bytes_moved "
            "and faults, `data` (hexadecimal) of read, `value` of checksum.",
            ("read 4M 16", "checksum 4M 2M"),
            _gpu_read_file,
            asks=True,
        ),
        Command(
            "prefetch",
            "ADDR LEN " + "|".join(_PREFETCH),
            "Migrate the ranges there now, past what is not mapped; ENODATA when they cannot be had there. REGION: "
            "another one of the device's memory. preferred: each where madvise says.",
            ("4M 2M vram", "4M 2M system"),
            _prefetch,
        ),
        Command(
            "madvise",
            "ADDR LEN " + " ".join(f"[{key}={'|'.join(values)}]" for key, values in _MADVISE.items()),
            "Where the pages shall be and who does atomics; moves nothing now. ADDR and LEN in whole pages. REGION: "
            "another one of the device's memory than vram.",
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
        Command(
            "backup",
            "[writeback]",
            "All its pages to the swap store, those in vram too; what is touched comes back. What finds no room or is "
            "in use stays in memory, and the result says so; writeback returns when it is on the disk.",
            ("", "writeback"),
            _backup,
        ),
        Command(
            "restore",
            "",
            "All its pages back from the swap store, to system; ENOMEM when memory does not hold all of them.",
            ("",),
            _restore,
        ),
    )
}
