"""The operations of the exerciser: what a client may do to its file, chosen and placed by its random generator.

Promise: what an operation does depends on the generator it is given and on the model's size, never on time, so the same
seed gives the same operations. Each one first notes what it is about to do, and each one checks bytes, its own or a
sample, so each one can fail.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .model import MismatchError

if TYPE_CHECKING:
    from .client import Client

PAGE = mmap.PAGESIZE
Operation = Callable[["Client", random.Random], None]

OPERATIONS: dict[str, Operation] = {}
WEIGHTS: dict[str, int] = {}
RESIZING: set[str] = set()  # not for clients that share a file: its size belongs to all of them
DIRECT: set[str] = set()  # only where O_DIRECT works

SAMPLE = 3 * PAGE


def operation(weight: int, *, resizes: bool = False, direct: bool = False) -> Callable[[Operation], Operation]:
    """Register a function as an operation, chosen with this weight."""

    def register(function: Operation) -> Operation:
        name = function.__name__
        OPERATIONS[name] = function
        WEIGHTS[name] = weight
        if resizes:
            RESIZING.add(name)
        if direct:
            DIRECT.add(name)
        return function

    return register


def choose(rng: random.Random, *, shared: bool, direct: bool, only: list[str] | None = None) -> str:
    """Pick the name of the next operation."""
    names = [n for n in (only or WEIGHTS) if not (shared and n in RESIZING) and (direct or n not in DIRECT)]
    return rng.choices(names, [WEIGHTS[n] for n in names])[0]


def pick_length(rng: random.Random, limit: int) -> int:
    """A length in bytes, 1 to `limit`: tiny, around a page, some pages, now and then large."""
    kind = rng.randrange(20)
    if kind < 4:
        length = rng.randint(1, 16)
    elif kind < 9:
        length = rng.randint(1, PAGE)
    elif kind < 12:
        length = max(1, PAGE * rng.randint(1, 3) + rng.randint(-3, 3))
    elif kind < 15:
        length = PAGE * rng.randint(1, 16)
    elif kind < 19:
        length = rng.randint(1, 256 << 10)
    else:
        length = rng.randint(1, 2 << 20)
    return max(1, min(length, limit))


def pick_offset(rng: random.Random, limit: int) -> int:
    """An offset in bytes, 0 to `limit`: anywhere, or close to a page boundary."""
    offset = rng.randint(0, limit)
    if rng.random() < 0.4:
        offset = max(0, min(limit, (offset // PAGE) * PAGE + rng.choice((-1, 0, 0, 1))))
    return offset


def pick_range(rng: random.Random, limit: int) -> tuple[int, int]:
    """(offset, length) of a non-empty range below `limit` (at least 1)."""
    offset = pick_offset(rng, limit - 1)
    return offset, pick_length(rng, limit - offset)


def fresh_bytes(rng: random.Random, length: int) -> np.ndarray:
    """uint8[length] of new random content."""
    return np.frombuffer(rng.randbytes(length), dtype=np.uint8)


def page_range(offset: int, length: int) -> tuple[int, int]:
    """The range widened to whole pages: (offset, length)."""
    first = offset & -PAGE
    return first, -(-(offset + length) // PAGE) * PAGE - first


def check_sample(c: Client, rng: random.Random, how: str) -> None:
    """Read a few pages somewhere and compare them: for operations that return no bytes themselves."""
    if c.model.size:
        offset = pick_offset(rng, c.model.size - 1)
        length = min(SAMPLE, c.model.size - offset)
        c.model.check(offset, c.read_at(offset, length), c.model.expected(offset, length), how)
    else:
        c.check_size(how)


@operation(14)
def pread(c: Client, rng: random.Random) -> None:
    """Read anywhere, also across and beyond the end of the file."""
    offset = pick_offset(rng, c.model.size)
    length = pick_length(rng, c.read_limit(offset))
    c.note(f"pread {offset}+{length}")
    c.model.check(offset, c.read_at(offset, length), c.model.expected(offset, length), "pread")


@operation(14)
def pwrite(c: Client, rng: random.Random) -> None:
    """Write anywhere, sometimes beyond the end, so that there is a hole."""
    past = 64 << 10 if rng.random() < 0.2 else 0
    offset = pick_offset(rng, min(c.model.size + past, c.model.capacity - 1))
    data = fresh_bytes(rng, pick_length(rng, c.model.capacity - offset))
    c.note(f"pwrite {offset}+{len(data)}")
    clean_last_page(c, offset + len(data))
    c.model.begin_write(offset, data)
    c.write_at(offset, data)
    c.model.commit()


def clean_last_page(c: Client, end: int) -> None:
    """Before a write(2) that makes the file longer: write back what a mapping has dirtied in its last page.

    Linux (6.17 and newer, any FUSE file system) zeroes a page behind the end of the file when it writes it back, also
    while a write has put its bytes there already but has not moved the end yet: those bytes are lost on their way. A
    page that is clean is not written back.
    """
    if end > c.model.size and c.model.size % PAGE:
        os.fsync(c.fd)


@operation(4, resizes=True)
def append(c: Client, rng: random.Random) -> None:
    """Write at the end through a descriptor opened with O_APPEND."""
    if c.model.size == c.model.capacity:
        c.note("append: full")
        check_sample(c, rng, "append (full)")
        return
    data = fresh_bytes(rng, pick_length(rng, c.model.capacity - c.model.size))
    c.note(f"append {c.model.size}+{len(data)}")
    clean_last_page(c, c.model.size + len(data))
    c.model.begin_write(c.model.size, data)
    fd = os.open(c.path, os.O_WRONLY | os.O_APPEND)
    try:
        rest = data.data
        while rest:
            rest = rest[os.write(fd, rest) :]
    finally:
        os.close(fd)
    c.count_written(len(data))
    c.model.commit()
    c.check_size("append")


@operation(14)
def load(c: Client, rng: random.Random) -> None:
    """Read through the shared mapping."""
    limit = c.mapped_bytes()
    if not limit:
        c.note("load: empty")
        c.check_size("load (empty)")
        return
    offset, length = pick_range(rng, limit)
    c.note(f"load {offset}+{length}")
    c.model.check(offset, c.mapping[offset : offset + length], c.model.expected(offset, length), "mmap load")


@operation(14)
def store(c: Client, rng: random.Random) -> None:
    """Write through the shared mapping."""
    limit = c.mapped_bytes()
    if not limit:
        c.note("store: empty")
        c.check_size("store (empty)")
        return
    offset, length = pick_range(rng, limit)
    data = fresh_bytes(rng, length)
    c.note(f"store {offset}+{length}")
    c.model.begin_write(offset, data)
    c.mapping[offset : offset + length] = data.tobytes()
    c.count_written(length)
    c.model.commit()


@operation(3)
def private(c: Client, rng: random.Random) -> None:
    """Change a MAP_PRIVATE copy: the copy shows the change, the file does not."""
    if not c.model.size:
        c.note("private: empty")
        c.check_size("private (empty)")
        return
    offset, length = pick_range(rng, c.model.size)
    data = fresh_bytes(rng, length)
    c.note(f"private {offset}+{length}")
    first, whole = page_range(offset, length)
    whole = min(whole, c.model.size - first)
    copy = c.map_private(first, whole)
    try:
        c.model.check(first, copy[:whole], c.model.expected(first, whole), "MAP_PRIVATE load")
        at = offset - first
        copy[at : at + length] = data.tobytes()
        changed = c.model.expected(first, whole).copy()
        changed[at : at + length] = data
        c.model.check(first, copy[:whole], changed, "MAP_PRIVATE copy after its own store")
    finally:
        copy.close()
    c.model.check(offset, c.read_at(offset, length), c.model.expected(offset, length), "file after a private store")


@operation(3)
def msync(c: Client, rng: random.Random) -> None:
    """Write the mapping's dirty pages back, all or a range of them."""
    limit = c.mapped_bytes()
    if not limit:
        c.note("msync: empty")
        c.check_size("msync (empty)")
        return
    offset, length = page_range(*pick_range(rng, limit))
    length = min(length, limit - offset)
    c.note(f"msync {offset}+{length}")
    c.mapping.flush(offset, length)
    check_sample(c, rng, "read after msync")


@operation(3)
def fsync(c: Client, rng: random.Random) -> None:
    """fsync or fdatasync."""
    data_only = rng.random() < 0.5
    c.note("fdatasync" if data_only else "fsync")
    (os.fdatasync if data_only else os.fsync)(c.fd)
    check_sample(c, rng, "read after fsync")


@operation(4, resizes=True)
def truncate(c: Client, rng: random.Random) -> None:
    """Make the file shorter or longer, with the mapping alive: what comes back is zeros."""
    size = c.model.size
    wanted = pick_offset(rng, size) if rng.random() < 0.4 else size + pick_offset(rng, c.model.capacity - size)
    if rng.random() < 0.5 and wanted < size:
        wanted = size - min(size, rng.randint(0, 3 * PAGE))
    c.note(f"truncate {size} to {wanted}")
    c.model.begin_resize(wanted)
    os.ftruncate(c.fd, wanted)
    c.model.commit()
    c.check_size("truncate")
    tail = max(0, min(size, wanted) - PAGE)
    length = min(SAMPLE, max(0, wanted - tail))
    c.model.check(tail, c.read_at(tail, length), c.model.expected(tail, length), "read around the new end")


@operation(1, resizes=True)
def o_trunc(c: Client, rng: random.Random) -> None:
    """Open again with O_TRUNC."""
    c.note(f"O_TRUNC of {c.model.size}")
    c.model.begin_resize(0)
    os.close(os.open(c.path, os.O_RDWR | os.O_TRUNC))
    c.model.commit()
    c.check_size("O_TRUNC")
    c.model.check(0, c.read_at(0, PAGE), c.model.expected(0, PAGE), "read after O_TRUNC")


@operation(3)
def fadvise(c: Client, rng: random.Random) -> None:
    """Drop cached pages with POSIX_FADV_DONTNEED, sometimes after fsync so that all of them can go."""
    offset = pick_offset(rng, c.model.size)
    length = pick_length(rng, c.model.capacity)
    synced = rng.random() < 0.5
    c.note(f"fadvise DONTNEED {offset}+{length}{' after fsync' if synced else ''}")
    if synced:
        os.fsync(c.fd)
    os.posix_fadvise(c.fd, c.model.base + offset, length, os.POSIX_FADV_DONTNEED)
    check_sample(c, rng, "read after fadvise")


ADVICE = {
    name: getattr(mmap, f"MADV_{name}")
    for name in ("RANDOM", "SEQUENTIAL", "NORMAL", "DONTNEED", "WILLNEED")
    if hasattr(mmap, f"MADV_{name}")
}


@operation(3)
def madvise(c: Client, rng: random.Random) -> None:
    """Advise about the mapping, then read through it."""
    limit = c.mapped_bytes()
    if not limit:
        c.note("madvise: empty")
        c.check_size("madvise (empty)")
        return
    name = rng.choice(sorted(ADVICE))
    offset, length = page_range(*pick_range(rng, limit))
    length = min(length, limit - offset)
    c.note(f"madvise {name} {offset}+{length}")
    c.mapping.madvise(ADVICE[name], offset, length)
    shown = min(length, SAMPLE)
    c.model.check(
        offset, c.mapping[offset : offset + shown], c.model.expected(offset, shown), f"load after MADV_{name}"
    )


@operation(4, direct=True)
def direct_read(c: Client, rng: random.Random) -> None:
    """Read whole pages with O_DIRECT, also across the end of the file."""
    offset = pick_offset(rng, c.model.size) & -PAGE
    pages = -(-pick_length(rng, max(1, c.read_limit(offset))) // PAGE)
    length = min(pages * PAGE, c.read_limit(offset) & -PAGE) or PAGE
    c.note(f"direct_read {offset}+{length}")
    c.model.check(offset, c.direct_read_at(offset, length), c.model.expected(offset, length), "O_DIRECT read")


@operation(4, direct=True)
def direct_write(c: Client, rng: random.Random) -> None:
    """Write whole pages with O_DIRECT."""
    offset = pick_offset(rng, min(c.model.size, c.model.capacity - 1)) & -PAGE
    pages = -(-pick_length(rng, c.model.capacity - offset) // PAGE)
    data = fresh_bytes(rng, pages * PAGE)
    c.note(f"direct_write {offset}+{len(data)}")
    clean_last_page(c, offset + len(data))
    c.model.begin_write(offset, data)
    c.direct_write_at(offset, data)
    c.model.commit()


@operation(1)
def reopen(c: Client, rng: random.Random) -> None:
    """Close the descriptors and the mapping (which writes dirty pages back) and open them again."""
    c.note("reopen")
    c.close()
    c.open()
    check_sample(c, rng, "read after reopen")


@operation(2)
def look(c: Client, rng: random.Random) -> None:
    """Close what may store, read through a descriptor that may not, and open again while that is still there."""
    c.note("look")
    c.close()
    c.fd = looker = os.open(c.path, os.O_RDONLY)
    try:
        check_sample(c, rng, "read while nobody may store")
        c.open()
    finally:
        os.close(looker)
    check_sample(c, rng, "read after a look")


@operation(2)
def remap(c: Client, rng: random.Random) -> None:
    """Map again, so that the mapping covers what the file has grown to."""
    c.note(f"remap {c.model.size}")
    c.drop_mapping()
    check_sample(c, rng, "read after remap")


@operation(1)
def verify(c: Client, rng: random.Random) -> None:
    """Compare the whole file, through one of the ways there are to read it."""
    ways = ["pread", "load"] + (["direct"] if c.direct_fd is not None else [])
    way = rng.choice(ways)
    c.note(f"verify {c.model.size} by {way}")
    verify_whole(c, way)


def verify_whole(c: Client, way: str, chunk: int = 1 << 20) -> None:
    """Compare every byte and the size. `way` is pread, load or direct."""
    c.check_size(f"verify by {way}")
    if way == "load":
        c.drop_mapping()
    for offset in range(0, c.model.size, chunk):
        length = min(chunk, c.model.size - offset)
        if way == "load":
            if c.mapped_bytes() < offset + length:
                raise MismatchError(f"verify: the mapping ends at {c.mapped_bytes()}, before {offset + length}")
            got: bytes = c.mapping[offset : offset + length]
        elif way == "direct":
            aligned = -(-length // PAGE) * PAGE
            got = c.direct_read_at(offset, aligned)
        else:
            got = c.read_at(offset, length)
        c.model.check(offset, got, c.model.expected(offset, length), f"verify by {way}")
    c.model.state.verified_bytes += c.model.size
