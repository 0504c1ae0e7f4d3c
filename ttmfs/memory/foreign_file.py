"""ForeignFile: the bytes of a file that belongs to somebody else, read and written, never mapped.

Whoever owns the file may cut it at any moment. A mapping of it would then kill the process that touches it (SIGBUS), so
every access goes through a buffer of our own (preadv, pwritev): what the file has not any more is an error. All methods
may wait for a disk: they belong in a worker thread, and any number of threads may use one file at the same time.
"""

import contextlib
import errno
import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.units import format_size

MAX_SIZE: Final = 64 << 40
"""Bytes of the largest file that can be imported."""

_Call = Callable[[int, list[memoryview], int], int]


class ForeignFile:
    """The file at `path`, which must be a regular one with memory behind it; a link at the end is not followed.

    `fd`: it is open already, and is this file's to close.

    `size` is its bytes as they were then, `uid`, `gid` and `mode` (permissions only) whose it is. TtmError: ENOENT
    missing, ELOOP a symbolic link, EACCES not readable and writable, EINVAL no regular file, empty, or without memory
    (proc, sysfs), EFBIG more than MAX_SIZE, ENODEV a file of a FUSE mount: serving it could wait for this process.
    """

    __slots__ = ("_closed", "_fd", "_lock", "_users", "gid", "mode", "path", "size", "uid")

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._fd = _open(path) if fd is None else fd
        try:
            info = os.fstat(self._fd)
            _check(path, self._fd, info)
        except BaseException:
            os.close(self._fd)
            raise
        self.size = info.st_size
        self.uid, self.gid = info.st_uid, info.st_gid
        self.mode = stat.S_IMODE(info.st_mode) & 0o777

    def check_whole(self) -> None:
        """TtmError(EIO) when the file is shorter than it was."""
        self.look()

    def look(self) -> os.stat_result:
        """What it is now. TtmError(EIO) when it is shorter than it was."""
        with self._used() as fd:
            info = os.fstat(fd)
            if info.st_size < self.size:
                raise self._cut()
            return info

    def read(self, offset: int, size: int) -> bytearray:
        """Exactly `size` bytes. TtmError(EIO) when the file ends before, or what its file system says."""
        data = bytearray(size)
        view = memoryview(data)
        done = 0
        with self._used() as fd:
            while done < size:
                got = self._call(os.preadv, fd, [view[done:]], offset + done)
                if not got:
                    raise self._cut()
                done += got
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """All of `data`. TtmError(EIO) when the file was cut, or what its file system says (ENOSPC, EDQUOT).

        A cut in the very moment of the write makes the file grow again, with zeros before what is written.
        """
        view = memoryview(data)
        done = 0
        with self._used() as fd:
            if os.fstat(fd).st_size < self.size:
                raise self._cut()
            while done < len(view):
                wrote = self._call(os.pwritev, fd, [view[done:]], offset + done)
                if not wrote:
                    raise TtmError(errno.EIO, f"{self.path} takes nothing at byte {offset + done}")
                done += wrote

    def close(self) -> None:
        """Let go of the file, at once or when the last thread that uses it is done. A second close does nothing."""
        with self._lock:
            last = not self._closed and not self._users
            self._closed = True
        if last:
            os.close(self._fd)

    @contextlib.contextmanager
    def _used(self) -> Iterator[int]:
        """The descriptor, which stays this file's as long as it is in use. TtmError(EIO) once it is closed."""
        with self._lock:
            if self._closed:
                raise TtmError(errno.EIO, f"{self.path} is no longer open here")
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._lock:
                self._users -= 1
                last = self._closed and not self._users
            if last:
                os.close(self._fd)

    def _call(self, call: _Call, fd: int, buffers: list[memoryview], offset: int) -> int:
        try:
            return call(fd, buffers, offset)
        except OSError as error:
            code = error.errno or errno.EIO
            raise TtmError(code, f"{self.path}: {os.strerror(code)}") from None

    def _cut(self) -> TtmError:
        return TtmError(errno.EIO, f"{self.path} was truncated: it had {self.size} bytes when it was imported")


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return os.open(path, flags)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        reason = getattr(error, "strerror", None) or str(error)
        if number == errno.ELOOP:
            reason = "it is a symbolic link: name the file itself"
        raise TtmError(number, f"{path[:300]!r} cannot be opened for reading and writing: {reason}") from None


def _check(path: str, fd: int, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise TtmError(errno.EINVAL, f"{path} is no regular file: only such a file has memory to share")
    if not info.st_size:
        raise TtmError(errno.EINVAL, f"{path} is empty: there is no memory to import")
    if info.st_size > MAX_SIZE:
        raise TtmError(errno.EFBIG, f"{path} has {info.st_size} bytes: import at most {format_size(MAX_SIZE)}")
    if filesystem_type(info.st_dev).startswith("fuse"):
        raise TtmError(errno.ENODEV, f"{path} is in a FUSE mount: import a file of a disk or of /dev/shm")
    try:
        # Only to see whether it has pages: nothing is touched.
        mmap.mmap(fd, min(info.st_size, mmap.PAGESIZE), mmap.MAP_SHARED, mmap.PROT_READ).close()
    except (OSError, ValueError) as error:
        raise TtmError(errno.EINVAL, f"{path} has no memory that could be shared: {error}") from None


def filesystem_type(device: int) -> str:
    """The type of the mounted file system with this st_dev, from mountinfo; empty when it is not listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            head, _, tail = line.partition(" - ")
            if head.split()[2] == wanted:
                return tail.split()[0]
    return ""
