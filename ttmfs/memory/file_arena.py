"""FileArena: the memory of another file, mapped shared, as an arena (what an sg table is to TTM).

It promises the same views as an Arena over all pages of the file; the part of the last page behind the file's end
reads as zeros. If somebody truncates the file, touching what was cut off would kill the process (SIGBUS): ask
`still_whole()` right before, with no await in between.
"""

import contextlib
import errno
import mmap
import os
import stat
from typing import Any

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.units import PAGE_SIZE, pages_of


class _Mapping:
    """Lends whole pages of a mapping to numpy and keeps it alive: an mmap object stops at the file's last byte."""

    def __init__(self, mapping: mmap.mmap, size: int) -> None:
        self._view = memoryview(mapping)
        address = np.frombuffer(self._view, np.uint8).ctypes.data
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (pages_of(size) * PAGE_SIZE,),
            "data": (address, False),
        }


class FileArena(Arena):
    """All pages of the file at `path`, `size` bytes.

    TtmError: ENOENT missing, EACCES not readable and writable, EINVAL no regular file or empty, ENODEV a file of a FUSE
    mount (serving it could wait for this very process), ENOMEM it cannot be mapped. It opens, so run it in a thread.
    """

    __slots__ = ("_fd", "size")

    def __init__(self, path: str) -> None:
        super().__init__(f"import {path}", 0)
        fd = _open(path)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise TtmError(errno.EINVAL, f"{path} is no regular file: only such a file can be imported")
            if not info.st_size:
                raise TtmError(errno.EINVAL, f"{path} is empty: there is no memory to import")
            if filesystem_type(info.st_dev).startswith("fuse"):
                raise TtmError(errno.ENODEV, f"{path} is in a FUSE mount: import a file of a disk or of /dev/shm")
            self._map = _mmap(fd, info.st_size, path)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.size = info.st_size
        flat: np.ndarray[Any, np.dtype[np.uint8]] = np.asarray(_Mapping(self._map, self.size))
        self.num_pages = pages_of(self.size)
        self.mem = flat.reshape(self.num_pages, PAGE_SIZE)
        self.buf = flat.data
        self.rows = self.mem.view(f"V{PAGE_SIZE}").reshape(self.num_pages)

    def still_whole(self) -> bool:
        """Is the file as long as it was?"""
        return self._fd >= 0 and os.fstat(self._fd).st_size >= self.size

    def close(self) -> None:
        """Unmap; the mapping itself goes with the last view of it."""
        fd, self._fd = self._fd, -1
        self._map = None
        super().close()
        if fd >= 0:
            os.close(fd)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        reason = getattr(error, "strerror", None) or str(error)
        raise TtmError(number, f"{path[:300]!r} cannot be opened for reading and writing: {reason}") from None


def _mmap(fd: int, size: int, path: str) -> mmap.mmap:
    try:
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    except (OSError, ValueError, OverflowError) as error:
        raise TtmError(errno.ENOMEM, f"{path} cannot be mapped: {error}") from None
    with contextlib.suppress(OSError):
        mapping.madvise(mmap.MADV_DONTFORK)
    return mapping


def filesystem_type(device: int) -> str:
    """The type of the mounted file system with this st_dev, from mountinfo; empty when it is not listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            head, _, tail = line.partition(" - ")
            if head.split()[2] == wanted:
                return tail.split()[0]
    return ""
