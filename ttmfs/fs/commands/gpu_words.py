"""The words of what the device does at its own addresses: `gpu`, `gpu_read` of an address space, `exec` of a VM.

Addresses and lengths are bytes, written as sizes are (`4096`, `0x1000`, `64K`, `2M`).
"""

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from ttmfs.driver.operation import Operation
from ttmfs.errors import TtmError, no_such
from ttmfs.units import parse_size

MAX_READ: Final = 1 << 20
"""Bytes that one `read` brings back: its result is a line of twice as many characters."""

_HEX: Final = re.compile(r"([0-9a-fA-F]{2})+")
_INTEGER: Final = re.compile(r"-?(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class GpuWords:
    """What was asked for: bytes [address, address + length), and the byte, the addend or the data."""

    kind: str
    address: int
    length: int
    value: int = 0
    data: bytes = b""

    @property
    def operation(self) -> Operation:
        """A fresh one."""
        return Operation(self.kind, value=self.value, data=self.data)


@dataclass(frozen=True, slots=True)
class GpuOperation:
    """`writes` says whether it is for who may write the space (`gpu`), or for who may read it (`gpu_read`)."""

    usage: str
    writes: bool
    parse: Callable[[list[str], str], GpuWords]


def parse_range(words: list[str], usage: str) -> tuple[int, int]:
    """(address, length) from ADDR LEN. TtmError(EINVAL)."""
    if len(words) != 2:
        raise TtmError(errno.EINVAL, f"say {usage}: an address and a length in bytes, as in 4M 64K")
    address, length = map(parse_size, words)
    if not length:
        raise TtmError(errno.EINVAL, "LEN is 0: say how many bytes")
    return address, length


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


def _count(words: list[str], number: int, usage: str) -> None:
    if len(words) != number:
        raise TtmError(errno.EINVAL, f"say {usage}")


def _fill(words: list[str], usage: str) -> GpuWords:
    _count(words, 3, usage)
    return GpuWords("fill", *parse_range(words[:2], usage), value=_byte(words[2]))


def _write(words: list[str], usage: str) -> GpuWords:
    _count(words, 2, usage)
    if not _HEX.fullmatch(words[1]):
        raise TtmError(errno.EINVAL, f"{words[1][:40]!r}: say bytes as pairs of hexadecimal digits, as in 00ff10")
    data = bytes.fromhex(words[1])
    return GpuWords("write", parse_size(words[0]), len(data), data=data)


def _read(words: list[str], usage: str) -> GpuWords:
    address, length = parse_range(words, usage)
    if length > MAX_READ:
        raise TtmError(errno.E2BIG, f"read brings at most {MAX_READ} bytes back: use checksum, or read the file")
    return GpuWords("read", address, length)


def _atomic_add(words: list[str], usage: str) -> GpuWords:
    _count(words, 2, usage)
    address = parse_size(words[0])
    if address & 7:
        raise TtmError(errno.EINVAL, f"{address:#x}: an atomic needs an address that is a multiple of 8")
    return GpuWords("atomic_add", address, 8, value=_u64(words[1]))


def _checksum(words: list[str], usage: str) -> GpuWords:
    return GpuWords("checksum", *parse_range(words, usage))


GPU_OPERATIONS: Final[Mapping[str, GpuOperation]] = {
    "fill": GpuOperation("fill ADDR LEN BYTE [nowait]", True, _fill),
    "write": GpuOperation("write ADDR HEXBYTES [nowait]", True, _write),
    "read": GpuOperation("read ADDR LEN", False, _read),
    "atomic_add": GpuOperation("atomic_add ADDR VALUE [nowait]", True, _atomic_add),
    "checksum": GpuOperation("checksum ADDR LEN", False, _checksum),
}


def gpu_usage(*which: bool) -> str:
    """The usages of those that write, that do not, or of both."""
    return " | ".join(operation.usage for operation in GPU_OPERATIONS.values() if operation.writes in which)


def take_operation(words: list[str], *which: bool) -> tuple[GpuWords, bool]:
    """What is asked for, and whether it is to be waited for. TtmError: EINVAL, E2BIG."""
    wait = "nowait" not in words
    words = [word for word in words if word != "nowait"]
    operation = GPU_OPERATIONS.get(words[0]) if words else None
    if operation is None:
        known = [name for name, operation in GPU_OPERATIONS.items() if operation.writes in which]
        raise no_such(words[0] if words else "", "operation of the device", known)
    if operation.writes not in which:
        other = "gpu, which needs write permission" if operation.writes else "gpu_read, which needs read permission"
        raise TtmError(errno.EACCES, f"{words[0]} is not for this file: write it into {other}")
    asked = operation.parse(words[1:], operation.usage)
    if not wait and not operation.writes:
        raise TtmError(errno.EINVAL, f"{words[0]} is asked for its value: it has none before it is done (no nowait)")
    return asked, wait
