"""What clients of the tests about names can do besides: sent to them as text, runs in them.

Its functions take paths below the mount, as those of mount_client do.
"""

import ctypes
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.mount.mount_client import path

_libc = ctypes.CDLL(None, use_errno=True)


def getdents(fd: int, size: int = 1024) -> "list[tuple[int, int, str]]":
    """One getdents64: (inode number, offset to go on from, name) of each entry, in the order in which they came."""
    buffer = ctypes.create_string_buffer(size)
    count = _libc.getdents64(fd, buffer, size)
    if count < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    rows, begin = [], 0
    while begin < count:
        ino, offset, length = struct.unpack_from("=qqH", buffer.raw, begin)
        name = buffer.raw[begin + 19 : begin + length].split(b"\0")[0]
        rows.append((ino, offset, os.fsdecode(name)))
        begin += length
    return rows


def getdents_all(fd: int, size: int = 1024) -> "list[tuple[int, int, str]]":
    """From where the descriptor stands to the end."""
    rows = []
    while some := getdents(fd, size):
        rows += some
    return rows


def put(name: str, data: bytes) -> None:
    """An atomic save: NAME.tmp, renamed."""
    with open(path(name + ".tmp"), "wb") as file:
        file.write(data)
    os.rename(path(name + ".tmp"), path(name))


def got(name: str) -> bytes:
    """All bytes of a file."""
    with open(path(name), "rb") as file:
        return file.read()
