"""Peek: the bytes of a BO, or of a region's own memory, where they are (ttm_bo_access; amdgpu_vram in debugfs)."""

import errno

from ttmfs.errors import TtmError
from ttmfs.fs.commands.error_log import ErrorLog
from ttmfs.fs.kernel.opening import Opening
from ttmfs.memory.arena import Arena
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.peek import peek, poke


class PeekHandle:
    """An open `objects/NAME/peek`: offsets are the BO's."""

    def __init__(self, bo: BufferObject, errors: ErrorLog, opening: Opening) -> None:
        self._bo = bo
        self._errors = errors
        self._opening = opening

    @property
    def size(self) -> int:
        """See Handle."""
        return self._bo.size

    def told(self) -> None:
        """It is read where it is: nobody is given an older one."""

    async def take(self) -> None:
        """Nothing is made before it is read."""

    async def read(self, offset: int, size: int) -> bytes:
        """As `peek`."""
        with self._errors.watching(f"read objects/{self._bo.name}/peek", self._opening.uid):
            return bytes(await peek(self._bo, offset, size))

    async def write(self, offset: int, data: bytes) -> int:
        """As `poke`."""
        with self._errors.watching(f"write objects/{self._bo.name}/peek", self._opening.uid):
            await poke(self._bo, offset, data)
        return len(data)


class VramHandle:
    """An open `debug/vram`: offsets are device addresses, also of what no BO has now."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena

    @property
    def size(self) -> int:
        """See Handle."""
        return len(self._arena.buf)

    def told(self) -> None:
        """It is read where it is: nobody is given an older one."""

    async def take(self) -> None:
        """Nothing is made before it is read."""

    async def read(self, offset: int, size: int) -> bytes:
        """As it is now."""
        return bytes(self._arena.buf[offset : offset + size])

    async def write(self, offset: int, data: bytes) -> int:
        """TtmError(EACCES): caches of clients would not hear of it."""
        raise TtmError(errno.EACCES, "this file is read-only: write a BO through objects/NAME/peek")
