"""The one page copy of ttmfs: moves, backup, restore, defrag, SVM and the jobs of the device all end here.

Pages are named by `(arena, page-number array)`. Where there is a library of ours (native.py) it copies them. Else
stretches that run on in both arrays are copied as slices; scattered pages are gathered and scattered by numpy, a
cache-sized piece at a time. Source and destination pages must not
overlap: which bytes then win is not defined. Nothing here checkpoints; a caller that shares the loop with others
walks `iter_steps` and checkpoints between. The interpreter lock is released in long copies and in every piece of a
scattered one, so that worker threads make progress beside the loop; not in `copy_run`, which is for steps on the loop.
"""

import errno
from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.native import NATIVE
from ttmfs.memory.runs import STEP_PAGES, PageArray, common_runs, is_run, iter_steps, runs
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, pages_of

__all__ = ["copy_pages", "copy_run", "gather", "iter_steps", "runs", "scatter", "zero_pages"]

_LONG_RUN = 32
"""Mean run (pages) from which np.copyto pays: below, memoryview slices have the smaller overhead per run."""
_FEW: Final = 8
"""Pages that stay in the processor's cache: whoever asked for so few reads them next."""

_native = NATIVE


def copy_pages(dst: Arena, dst_pages: PageArray, src: Arena, src_pages: PageArray) -> None:
    """Copy page `src_pages[i]` of `src` to page `dst_pages[i]` of `dst`, for all i.

    Raises TtmError(EINVAL), with nothing copied, when the arrays differ in length or name a page beyond their arena.
    """
    size = len(dst_pages)
    if size != len(src_pages):
        message = f"{size} pages cannot be filled from {len(src_pages)}: both must be the same number"
        raise TtmError(errno.EINVAL, message)
    if size == 0:
        return
    _check(dst, dst_pages)
    _check(src, src_pages)
    if _native is not None and size > _FEW:
        _native.copy_pages(dst, dst_pages, src, src_pages)
        return
    if is_run(dst_pages) and is_run(src_pages):
        d, s = int(dst_pages[0]), int(src_pages[0])
        np.copyto(dst.mem[d : d + size], src.mem[s : s + size])
        return
    breaks = (dst_pages[1:] - dst_pages[:-1] != 1) | (src_pages[1:] - src_pages[:-1] != 1)
    if size >= 2 * (int(np.count_nonzero(breaks)) + 1):
        index, lengths = common_runs(dst_pages, src_pages)
        _copy_runs(dst, np.asarray(dst_pages)[index], src, np.asarray(src_pages)[index], lengths)
    else:
        _copy_scattered(dst, dst_pages, src, src_pages)


def copy_run(dst: Arena, dst_page: int, src: Arena, src_page: int, count: int) -> None:
    """Copy `count` pages from page `src_page` on to `dst_page` and on. TtmError(EINVAL) for one beyond its arena."""
    for arena, page in ((dst, dst_page), (src, src_page)):
        if not 0 <= page <= arena.num_pages - count:
            raise TtmError(errno.EINVAL, f"pages {page}+{count} are not in {arena.name!r}")
    if _native is not None and count > _FEW:
        _native.copy_run(dst, dst_page, src, src_page, count)
        return
    size = count << PAGE_SHIFT
    to, source = dst_page << PAGE_SHIFT, src_page << PAGE_SHIFT
    dst.buf[to : to + size] = src.buf[source : source + size]


def _copy_runs(dst: Arena, dst_starts: PageArray, src: Arena, src_starts: PageArray, lengths: PageArray) -> None:
    triples = zip(dst_starts.tolist(), src_starts.tolist(), lengths.tolist(), strict=True)
    if int(lengths.sum()) >= _LONG_RUN * lengths.size:
        for d, s, n in triples:
            np.copyto(dst.mem[d : d + n], src.mem[s : s + n])
        return
    dst_buf, src_buf = dst.buf, src.buf
    for d, s, n in triples:
        size = n << PAGE_SHIFT
        d <<= PAGE_SHIFT  # noqa: PLW2901
        s <<= PAGE_SHIFT  # noqa: PLW2901
        dst_buf[d : d + size] = src_buf[s : s + size]


def _copy_scattered(dst: Arena, dst_pages: PageArray, src: Arena, src_pages: PageArray) -> None:
    # A side that is one run needs no piece between; mode="clip" lets take write straight into its output.
    size = len(dst_pages)
    dst_run, src_run = is_run(dst_pages), is_run(src_pages)
    piece = None if dst_run or src_run else np.empty(STEP_PAGES, src.rows.dtype)
    for step in iter_steps(size):
        count = step.stop - step.start
        if dst_run:
            first = int(dst_pages[0]) + step.start
            np.take(src.rows, src_pages[step], out=dst.rows[first : first + count], mode="clip")
        elif src_run:
            first = int(src_pages[0]) + step.start
            dst.rows[dst_pages[step]] = src.rows[first : first + count]
        elif piece is not None:
            np.take(src.rows, src_pages[step], out=piece[:count], mode="clip")
            dst.rows[dst_pages[step]] = piece[:count]


def zero_pages(dst: Arena, dst_pages: PageArray) -> None:
    """Fill these pages with zeros. Raises TtmError(EINVAL) for a page beyond the arena, with nothing changed."""
    _check(dst, dst_pages)
    dst.zero(dst_pages)


def gather(src: Arena, src_pages: PageArray, offset: int, size: int) -> memoryview:
    """`size` bytes of these pages, taken as one stretch of bytes, from `offset` bytes into the first.

    One run of pages is answered with the arena's *own* memory, not a copy: it changes when the pages change, and must
    be used or copied before anything else may own them. Scattered pages are copied into fresh memory.
    Raises TtmError(EINVAL) when the stretch leaves the pages.
    """
    _check_stretch(src, src_pages, offset, size)
    first, last = offset >> PAGE_SHIFT, pages_of(offset + size)
    pages = src_pages[first:last]
    skip = offset - (first << PAGE_SHIFT)
    if size == 0:
        return memoryview(b"")
    if is_run(pages):
        begin = (int(pages[0]) << PAGE_SHIFT) + skip
        return src.buf[begin : begin + size]
    whole = np.empty(len(pages), src.rows.dtype)
    np.take(src.rows, pages, out=whole, mode="clip")
    return memoryview(whole.view(np.uint8).data)[skip : skip + size]


def scatter(dst: Arena, dst_pages: PageArray, offset: int, data: bytes | bytearray | memoryview) -> None:
    """Write `data` (any contiguous buffer) over these pages, from `offset` bytes into the first.

    Raises TtmError(EINVAL), with nothing written, when it does not fit.
    """
    source = memoryview(data).cast("B")
    size = source.nbytes
    _check_stretch(dst, dst_pages, offset, size)
    if size == 0:
        return
    first, last = offset >> PAGE_SHIFT, pages_of(offset + size)
    pages = dst_pages[first:last]
    skip = offset - (first << PAGE_SHIFT)
    if is_run(pages):
        begin = (int(pages[0]) << PAGE_SHIFT) + skip
        dst.buf[begin : begin + size] = source
        return
    done = 0
    if skip:
        done = PAGE_SIZE - skip  # more than one page, so the data reaches the first one's end
        begin = (int(pages[0]) << PAGE_SHIFT) + skip
        dst.buf[begin : begin + done] = source[:done]
        pages = pages[1:]
    whole = (size - done) >> PAGE_SHIFT
    if whole:
        end = done + (whole << PAGE_SHIFT)
        dst.rows[pages[:whole]] = np.frombuffer(source[done:end], dst.rows.dtype)
        done = end
    if done < size:
        begin = int(pages[whole]) << PAGE_SHIFT
        dst.buf[begin : begin + size - done] = source[done:]


def _check(arena: Arena, pages: PageArray) -> None:
    if len(pages) and (int(pages.max()) >= arena.num_pages or (pages.dtype.kind != "u" and int(pages.min()) < 0)):
        raise TtmError(errno.EINVAL, f"a page is not in {arena.name!r}, which has {arena.num_pages}")


def _check_stretch(arena: Arena, pages: PageArray, offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > len(pages) << PAGE_SHIFT:
        message = f"{size} bytes at {offset} do not lie in {len(pages)} pages"
        raise TtmError(errno.EINVAL, message)
    _check(arena, pages)
