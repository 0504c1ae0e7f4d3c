"""Operation: what a device does to bytes at its own addresses, in an address space (svm) or a VM.

It is done piece by piece, each in memory that was captured when it was submitted.
"""

import zlib
from typing import Final

from ttmfs.driver.jobs import Span
from ttmfs.errors import TtmError
from ttmfs.sync.fence import Fence

_STEP: Final = 1 << 20
_WORD: Final = 1 << 64


class Operation:
    """One device operation: `kind` is fill, write, read, atomic_add or checksum.

    `data` is what is written; `value` the byte or the addend. `result` collects what is read, or is what an atomic
    found, or the checksum.
    """

    __slots__ = ("data", "error", "fence", "kind", "result", "value")

    def __init__(self, kind: str, *, value: int = 0, data: bytes = b"") -> None:
        self.kind = kind
        self.value = value
        self.data = data
        self.result: bytearray | int = bytearray() if kind == "read" else 0
        self.error: TtmError | None = None
        self.fence: Fence | None = None

    @property
    def writes(self) -> bool:
        """Does it change bytes?"""
        return self.kind in ("fill", "write", "atomic_add")

    @property
    def reads(self) -> bool:
        """Does it need the bytes that are there?"""
        return self.kind not in ("fill", "write")

    def execute(self, span: Span, offset: int, size: int, done: int) -> None:
        """Work on `size` bytes from `offset` of the span on; `done` bytes of the operation come before them."""
        for start in range(0, size, _STEP):
            length = min(_STEP, size - start)
            out = self._step(span.load(offset + start, length) if self.reads else None, length, done + start)
            if out is not None:
                span.store(offset + start, out)

    async def execute_imported(self, span: Span, offset: int, size: int, done: int) -> None:
        """The same in memory of an exporter. TtmError(EIO) when he has lost it."""
        for start in range(0, size, _STEP):
            length = min(_STEP, size - start)
            data = await span.fetch(offset + start, length) if self.reads else None
            out = self._step(data, length, done + start)
            if out is not None:
                await span.put(offset + start, memoryview(bytes(out)))

    def _step(self, data: memoryview | None, length: int, done: int) -> memoryview | None:
        """One step over `length` bytes, given what is there; what is to be there, if it writes."""
        if self.kind == "fill":
            return memoryview(bytes([self.value]) * length)
        if self.kind == "write":
            return memoryview(self.data)[done : done + length]
        assert data is not None
        if self.kind == "atomic_add":
            word = int.from_bytes(data, "little")
            self.result = word
            return memoryview(((word + self.value) % _WORD).to_bytes(8, "little"))
        if isinstance(self.result, bytearray):
            self.result += data
        else:
            self.result = zlib.crc32(data, self.result)
        return None
