"""CacheWindow: how much of a file the host's page cache holds for its user, as bytes.

It promises: no more than `cache_bytes` for long. What was written lately stays dirty (much of it is dropped before it
would ever reach the disk); what is older than half of the window is on its way there, and what leaves the window is
waited for and dropped from the cache, so that who writes faster than the disk is slowed down to its pace.
Any thread may call it.
"""

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

_STRETCH: Final = 8 << 20
"""The file in stretches of this size: what is known of each is how much of it may be cached."""
_WRITE: Final = 0x2
_WAIT_WRITE_WAIT: Final = 0x1 | 0x2 | 0x4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class _Stretches:
    """How many bytes of which stretches, the longest untouched first, and of all together."""

    def __init__(self) -> None:
        self.size = 0
        self._bytes: OrderedDict[int, int] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        return number in self._bytes

    def add(self, number: int, size: int) -> None:
        """So many more bytes of this stretch, which is the last one touched now."""
        size = min(_STRETCH, self.take(number) + size)
        self._bytes[number] = size
        self.size += size

    def gain(self, number: int, size: int) -> None:
        """So many more bytes of this stretch, which is as old as it was."""
        before = self._bytes[number]
        self._bytes[number] = min(_STRETCH, before + size)
        self.size += self._bytes[number] - before

    def take(self, number: int) -> int:
        """Forget this stretch; its bytes."""
        size = self._bytes.pop(number, 0)
        self.size -= size
        return size

    def lose(self, number: int, size: int) -> None:
        """So many bytes of this stretch are gone; it is as old as it was."""
        size = min(size, self._bytes.get(number, 0))
        self.size -= size
        if size and size == self._bytes[number]:
            del self._bytes[number]
        elif size:
            self._bytes[number] -= size

    def take_beyond(self, most: int) -> list[tuple[int, int]]:
        """Forget the oldest until at most `most` bytes are left; their numbers and bytes."""
        taken = []
        while self.size > most:
            number = next(iter(self._bytes))
            taken.append((number, self.take(number)))
        return taken


class CacheWindow:
    """The window of the file open as `fd`."""

    def __init__(self, fd: int, cache_bytes: int) -> None:
        self._fd = fd
        self._half = cache_bytes // 2
        self._lock = threading.Lock()
        self._dirty, self._old = _Stretches(), _Stretches()

    def went_through(self, offset: int, size: int, *, dirty: bool) -> None:
        """These bytes were written (`dirty`) or read just now. May wait for the disk."""
        with self._lock:
            for number, part in _parts(offset, size):
                if dirty:
                    self._dirty.add(number, self._old.take(number) + part)
                elif number in self._dirty:
                    self._dirty.gain(number, part)
                else:
                    self._old.add(number, part)
            begin = self._dirty.take_beyond(self._half)
            for number, bytes_of in begin:
                self._old.add(number, bytes_of)
            end = self._old.take_beyond(self._half)
        for number, _bytes in begin:
            _libc.sync_file_range(self._fd, number * _STRETCH, _STRETCH, _WRITE)
        for number, _bytes in end:
            _libc.sync_file_range(self._fd, number * _STRETCH, _STRETCH, _WAIT_WRITE_WAIT)
            os.posix_fadvise(self._fd, number * _STRETCH, _STRETCH, os.POSIX_FADV_DONTNEED)

    def punched(self, offset: int, size: int) -> None:
        """There is nothing any more in this part of the file."""
        with self._lock:
            for number, part in _parts(offset, size):
                (self._dirty if number in self._dirty else self._old).lose(number, part)

    def cleared(self) -> None:
        """The file is empty."""
        with self._lock:
            self._dirty, self._old = _Stretches(), _Stretches()


def _parts(offset: int, size: int) -> Iterator[tuple[int, int]]:
    """The stretches that [offset, offset + size) meets, and how many bytes of each."""
    for number in range(offset // _STRETCH, -(-(offset + size) // _STRETCH)):
        yield number, min(offset + size, (number + 1) * _STRETCH) - max(offset, number * _STRETCH)
