"""What the host says about our memory: which pages it holds for an arena, the mappings of this process."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np

from ttmfs.memory.arena import Arena
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
_mincore = _libc.mincore
_mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_munmap = _libc.munmap
_munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def resident_pages(arena: Arena, first: int = 0, count: int | None = None) -> int:
    """How many of these pages (all of them by default) the host holds memory for. AssertionError if one is unmapped."""
    count = arena.num_pages - first if count is None else count
    if not count:
        return 0
    found = np.zeros(count, np.uint8)
    result = _mincore(arena.address + (first << PAGE_SHIFT), count << PAGE_SHIFT, found.ctypes.data)
    assert result == 0, f"mincore: {os.strerror(ctypes.get_errno())}"
    return int((found & 1).sum())


def cached_bytes(path: Path) -> int:
    """How many bytes of a file the page cache holds, in whole pages."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        found = np.zeros(-(-len(mapping) // PAGE_SIZE), np.uint8)
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        assert _mincore(start, len(mapping), found.ctypes.data) == 0, os.strerror(ctypes.get_errno())
    return int((found & 1).sum()) << PAGE_SHIFT


def mappings() -> int:
    """How many mappings this process has."""
    return len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())


def vm_flags(address: int) -> set[str]:
    """The two-letter flags (see proc(5), VmFlags) of the mapping that holds this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        key = line.split(maxsplit=1)[0]
        if "-" in key and not key.endswith(":"):
            first, end = (int(part, 16) for part in key.split("-"))
            inside = first <= address < end
        elif inside and key == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError(f"{address:#x} is not mapped")


def unmap(address: int, size: int) -> None:
    """munmap."""
    assert _munmap(address, size) == 0
