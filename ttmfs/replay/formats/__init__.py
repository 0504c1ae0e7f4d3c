"""Trace files: which format one has is found by its content, compressed (zstd) or not."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Final

import zstandard

from ttmfs.errors import TtmError
from ttmfs.replay.formats import cachesim, kvcache, tracing
from ttmfs.replay.trace import Trace

_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_LOOK: Final = 1 << 16
"""Bytes that a format is told by."""

READERS: Final[tuple[tuple[Callable[[bytes], bool], Callable[[str, bytes, int], Trace]], ...]] = (
    (kvcache.looks_so, kvcache.read),
    (tracing.looks_like_kernel, tracing.read_kernel),
    (tracing.looks_like_ttmfs, tracing.read_ttmfs),
    (cachesim.looks_like_oracle, cachesim.read_oracle),
    (cachesim.looks_like_csv, cachesim.read_csv),
)
"""Each format: whether the beginning of a file looks like it, and its reader. The first that does is taken."""


def read_trace(path: str, block_bytes: int) -> Trace:
    """Read a trace file. `block_bytes`: the size of a BO where the format does not say it.

    TtmError: what open says, EINVAL for a format that is not known, or a line that is no request in one that is.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TtmError(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    if data.startswith(_ZSTD):
        data = _decompressed(path, data)
    for looks_so, read in READERS:
        if looks_so(data[:_LOOK]):
            return read(path, data, block_bytes)
    raise TtmError(
        errno.EINVAL,
        f"{path} is no trace of a known format: text of trace_pipe or ftrace, libCacheSim's csv or oracleGeneral, "
        "lines of JSON with hash_ids, or lines of time,id,bytes",
    )


def _decompressed(path: str, data: bytes) -> bytes:
    """All frames of it. TtmError(EINVAL) when one is damaged, or cut off."""
    parts = []
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise TtmError(errno.EINVAL, f"{path} is zstd, but damaged: {error}") from None
        if not frame.eof:
            raise TtmError(errno.EINVAL, f"{path} is zstd, but cut off")
        data = frame.unused_data
    return b"".join(parts)
