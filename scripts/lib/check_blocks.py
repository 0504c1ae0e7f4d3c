"""An independent check of what fio wrote with verify=crc32c: no fio code, another way of reading, our own CRC.

Run as a program: `check_blocks.py FILE...` reads each file whole by pread, by mmap and, where there is O_DIRECT, by
that; prints one JSON line {"files", "bytes", "wrong_bytes", "details"}. Every 4 KiB-or-larger block must carry fio's
header with its own offset and the CRC-32C of its payload, and the three ways must give the same bytes. wrong_bytes
counts a block that fails as a whole. Exit status 1 if there is any.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path

import numpy as np

MAGIC = 0xACCA
_HEAD = [("magic", "<u2"), ("type", "<u2"), ("length", "<u4"), ("seed", "<u8"), ("offset", "<u8"), ("time", "<u8")]
HEADERS = {
    0x0005: np.dtype([*_HEAD, ("thread", "<u2"), ("number", "<u2"), ("header_crc", "<u4"), ("crc", "<u4")]),
    0x0581: np.dtype(
        [*_HEAD, ("number", "<u8"), ("thread", "<u2"), ("padding", "<u2"), ("header_crc", "<u4"), ("crc", "<u4")]
    ),
}
"""Layouts of the header of crc32c by its type: fio's until 3.39 at least, and that of 3.41."""


def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(0x82F63B78), values >> 1).astype(np.uint32)
    return values


TABLE = _table()


def crc32c(blocks: np.ndarray) -> np.ndarray:
    """CRC-32C of each row of uint8[n, length], all rows at once; uint32[n], without the last inversion (as fio)."""
    crc = np.full(len(blocks), 0xFFFFFFFF, dtype=np.uint32)
    for column in np.ascontiguousarray(blocks.T):
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> 8)
    return crc


def wrong_blocks(data: np.ndarray, block: int = 4096) -> np.ndarray:
    """Indices of blocks of `block` bytes whose header or payload is not what fio wrote there."""
    rows = data[: len(data) // block * block].reshape(-1, block)
    right = np.zeros(len(rows), np.bool_)
    for kind, layout in HEADERS.items():
        headers = rows[:, : layout.itemsize].copy().view(layout)[:, 0]
        its = np.flatnonzero((headers["magic"] == MAGIC) & (headers["type"] == kind) & (headers["length"] == block))
        headers = headers[its]
        there = headers["offset"] == its.astype(np.uint64) * np.uint64(block)
        right[its] = there & (headers["crc"] == crc32c(rows[its, layout.itemsize :]))
    return np.flatnonzero(~right)


def unknown_headers(data: np.ndarray) -> list[str]:
    """A sentence where `data` begins with a header of fio's whose layout is not among HEADERS."""
    magic, kind = data[:4].tobytes().ljust(4, b"\0")[:2], int.from_bytes(data[2:4].tobytes(), "little")
    if magic != MAGIC.to_bytes(2, "little") or kind in HEADERS:
        return []
    return [f"this fio writes headers of type {kind:#06x}, which this check does not know: tell it in HEADERS"]


def ways_to_read(path: str) -> dict[str, np.ndarray]:
    """The whole content, uint8, once for each way there is to read it."""
    found: dict[str, np.ndarray] = {}
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    found["pread"] = np.frombuffer(read_whole(fd, size), dtype=np.uint8)
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
        found["mmap"] = np.frombuffer(mapping[:], dtype=np.uint8)
    os.close(fd)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        return found
    found["O_DIRECT"] = np.frombuffer(read_whole(fd, size), dtype=np.uint8)
    os.close(fd)
    return found


def read_whole(fd: int, size: int) -> memoryview:
    """pread all of a file into page-aligned memory; what is missing at its end is left out."""
    buffer = memoryview(mmap.mmap(-1, max(size, 1)))
    done = 0
    while done < size and (got := os.preadv(fd, [buffer[done : min(size, done + (1 << 20))]], done)):
        done += got
    return buffer[:done]


def check(paths: list[str]) -> dict[str, object]:
    """Check all files; returns what the program prints."""
    total, wrong, details = 0, 0, []
    for path in paths:
        ways = ways_to_read(path)
        first = ways["pread"]
        total += len(first)
        bad = wrong_blocks(first)
        if len(bad):
            wrong += len(bad) * 4096
            details.append(f"{Path(path).name}: {len(bad)} wrong blocks, the first at offset {int(bad[0]) * 4096}")
            details += unknown_headers(first)
        for name, data in ways.items():
            if len(data) != len(first):
                wrong += abs(len(data) - len(first))
                details.append(f"{Path(path).name}: {name} gives {len(data)} bytes, pread {len(first)}")
            elif differing := int(np.count_nonzero(data != first)):
                wrong += differing
                details.append(f"{Path(path).name}: {differing} bytes differ between {name} and pread")
    return {"files": len(paths), "bytes": total, "wrong_bytes": wrong, "details": details}


if __name__ == "__main__":
    result = check(sys.argv[1:])
    print(json.dumps(result))
    sys.exit(1 if result["wrong_bytes"] or not result["bytes"] else 0)
