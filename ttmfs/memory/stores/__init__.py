"""Swap stores: where backed-up pages are. `make_store` makes the one that `--swap-store` names."""

import errno
import os

from ttmfs.errors import TtmError
from ttmfs.memory.stores.base import SwapStore
from ttmfs.memory.stores.chain import ZstdFileStore
from ttmfs.memory.stores.file import FileStore
from ttmfs.memory.stores.shmem import ShmemStore
from ttmfs.memory.stores.transfer import LoadError, LoadTransfer, StoreStatistics, StoreTransfer
from ttmfs.memory.stores.zstd import ZstdStore
from ttmfs.units import PAGE_SIZE

__all__ = [
    "FileStore",
    "LoadError",
    "LoadTransfer",
    "ShmemStore",
    "StoreStatistics",
    "StoreTransfer",
    "SwapStore",
    "ZstdFileStore",
    "ZstdStore",
    "check_spec",
    "make_store",
]

SPECS = "shmem, file:PATH, zstd or zstd+file:PATH"


def check_spec(spec: str) -> str:
    """`spec` with its path made absolute. TtmError(EINVAL) when it names no store, or no file where it needs one."""
    kind, colon, path = spec.partition(":")
    if kind not in {"shmem", "zstd", "file", "zstd+file"}:
        raise TtmError(errno.EINVAL, f"{spec[:60]!r} is no swap store: write {SPECS}")
    on_disk = kind.endswith("file")
    if on_disk and (not path or "\0" in path):
        raise TtmError(errno.EINVAL, f"{spec[:60]!r} names no file: write {kind}:PATH")
    if colon and not on_disk:
        raise TtmError(errno.EINVAL, f"{spec[:60]!r}: {kind} takes no path, write {SPECS}")
    return f"{kind}:{os.path.abspath(path)}" if on_disk else kind


def make_store(spec: str, size: int) -> SwapStore | None:
    """The store that `spec` names, for `size` stored bytes; None for size 0, which is no store.

    Raises TtmError: EINVAL for a word that is no store, a path that is missing or is something else, or a size that is
    negative or less than a page; EBUSY when another process uses the file; otherwise what the disk says.
    """
    kind, _, path = check_spec(spec).partition(":")
    if size == 0:
        return None
    if size < PAGE_SIZE:
        raise TtmError(errno.EINVAL, f"a swap store of {size} bytes holds not one page of {PAGE_SIZE}")
    match kind:
        case "shmem":
            return ShmemStore(size)
        case "file":
            return FileStore(path, size)
        case "zstd":
            return ZstdStore(size)
    return ZstdFileStore(path, size)
