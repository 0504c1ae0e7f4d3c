"""Checksums of pages: four bytes a page, kept beside the slots of a store and compared when a page comes back.

Two of them, for two dangers. `page_sums` guards memory against stray writes and flipped bits: a keyed sum of the
page's 32-bit words, nearly as fast as reading them (measured: 24 GB/s, where a page copy runs at 13). It notices every
change within one word, and random damage but for one in 2**32; two changes that touch nothing but the same few topmost
bits of words may cancel out, which damage in memory does not do. `page_hash` is the
lower half of XXH3, for what lay on a medium or was compressed (measured: 17 GB/s, five times a CRC-32).
"""

from typing import Final

import numpy as np
from xxhash import xxh3_64_intdigest, xxh3_128_digest

from ttmfs.memory.arena import Arena
from ttmfs.memory.native import NATIVE
from ttmfs.memory.runs import PageArray, Uint32Array, is_run, runs
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE

SUM_STEP: Final = 64
"""Pages summed at a time: what a copy of them just left in the processor's cache."""
ZERO_HASH: Final = xxh3_64_intdigest(bytes(PAGE_SIZE)) & 0xFFFFFFFF
_WORDS: Final = PAGE_SIZE // 4
_LONG_RUN: Final = 8
_native = NATIVE
# Odd, so that no change of a single word is multiplied away. Fixed: sums of two runs of a test can be compared. Out of
# hashes, because numpy.random would be loaded for nothing else, a fortieth of the way to a mount.
_NOISE: Final = b"".join(xxh3_128_digest(bytes([n])) for n in range(_WORDS // 4))
_KEYS: Final = np.frombuffer(_NOISE, np.uint32) | np.uint32(1)


def _sums_of_rows(rows: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], out: Uint32Array) -> None:
    np.einsum("ij,j->i", rows.view(np.uint32), _KEYS, out=out)


def page_sums(arena: Arena, pages: PageArray, out: Uint32Array) -> None:
    """The keyed sums of these pages, into `out` (uint32, same length). IndexError for a page beyond the arena."""
    size = len(pages)
    if is_run(pages):
        first = int(pages[0]) if size else 0
        _sums_of_rows(arena.mem[first : first + size], out)
        return
    if _native is not None:
        _native.sum_pages(arena, pages, _KEYS, out)
        return
    index, starts, lengths = runs(pages)
    if size >= _LONG_RUN * index.size:
        for at, start, length in zip(index.tolist(), starts.tolist(), lengths.tolist(), strict=True):
            _sums_of_rows(arena.mem[start : start + length], out[at : at + length])
        return
    for begin in range(0, size, SUM_STEP):
        part = pages[begin : begin + SUM_STEP]
        rows = arena.rows[part].view(np.uint8).reshape(len(part), PAGE_SIZE)
        _sums_of_rows(rows, out[begin : begin + len(part)])


def copy_and_sum(dst: Arena, dst_pages: PageArray, src: Arena, src_pages: PageArray, out: Uint32Array) -> None:
    """copy_pages and `page_sums` of what was copied in one, while it is in the processor's cache.

    The pages must be in their arenas, and not overlap.
    """
    size = len(src_pages)
    if not size:
        return
    if _native is not None:
        _native.copy_and_sum(dst, dst_pages, src, src_pages, _KEYS, out)
        return
    piece = np.empty(min(size, SUM_STEP), src.rows.dtype)
    from_run, to_run = is_run(src_pages), is_run(dst_pages)
    s, d = int(src_pages[0]), int(dst_pages[0])
    for begin in range(0, size, SUM_STEP):
        end = min(begin + SUM_STEP, size)
        if to_run:
            rows = dst.mem[d + begin : d + end]
            if from_run:
                np.copyto(rows, src.mem[s + begin : s + end])
            else:
                np.take(src.rows, src_pages[begin:end], out=dst.rows[d + begin : d + end], mode="clip")
            _sums_of_rows(rows, out[begin:end])
        elif from_run:
            dst.rows[dst_pages[begin:end]] = src.rows[s + begin : s + end]
            _sums_of_rows(src.mem[s + begin : s + end], out[begin:end])
        else:
            part = piece[: end - begin]
            np.take(src.rows, src_pages[begin:end], out=part, mode="clip")
            dst.rows[dst_pages[begin:end]] = part
            _sums_of_rows(part.view(np.uint8).reshape(-1, PAGE_SIZE), out[begin:end])


def page_hash(data: memoryview | bytes) -> int:
    """The hash of one page's bytes."""
    return xxh3_64_intdigest(data) & 0xFFFFFFFF


def page_hashes(arena: Arena, pages: PageArray, out: Uint32Array) -> None:
    """The hashes of these pages, into `out` (uint32, same length)."""
    if is_run(pages):
        first = int(pages[0]) if len(pages) else 0
        found = list(map(xxh3_64_intdigest, arena.mem[first : first + len(pages)]))
    else:
        buf = arena.buf
        found = [xxh3_64_intdigest(buf[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT]) for page in pages.tolist()]
    out[:] = np.array(found, np.uint64).astype(np.uint32)
