"""A model of what the kernel keeps for svm files: a page cache that all clients share, with locked and dirty folios.

It is the Unmapper of address spaces in the tests. An INVAL waits for folios that a READ has locked and writes dirty
ones back, as the kernel does; that a request waits for the INVAL that waits for it shows as virtual time that passes.
"""

from typing import Any

import trio

from ttmfs.errors import TtmError
from ttmfs.svm import cpu
from ttmfs.svm.space import AddressSpace

PAGE = 4096
PATIENCE = 2.0
"""Virtual seconds: nothing in these tests makes an INVAL take long, except that somebody waits in a circle."""


async def _read(space: Any, offset: int, size: int) -> bytes:
    """Of an address space, or of whatever else has pages in this cache."""
    return bytes(await (cpu.read(space, offset, size) if isinstance(space, AddressSpace) else space.read(offset, size)))


async def _write(space: Any, offset: int, data: bytes) -> None:
    await (cpu.write(space, offset, data) if isinstance(space, AddressSpace) else space.write(offset, data))


class Folio:
    def __init__(self) -> None:
        self.data: bytearray | None = None
        self.dirty = False
        self.lock = trio.Lock()


class PageCache:
    """Clients of a space go through `load`, `store`, `pwrite`; `reads`, `writes` list the pages asked for."""

    def __init__(self) -> None:
        self.folios: dict[tuple[AddressSpace, int], Folio] = {}
        self.reads: list[int] = []
        self.writes: list[int] = []
        self.invals: list[tuple[int, int]] = []

    def _folio(self, space: AddressSpace, page: int) -> Folio:
        return self.folios.setdefault((space, page), Folio())

    async def _fault(self, space: AddressSpace, page: int) -> Folio:
        """The folio, up to date: nothing is awaited after that was seen."""
        while True:
            folio = self._folio(space, page)
            if folio.data is not None:
                return folio
            async with folio.lock:
                if folio.data is None:
                    self.reads.append(page)
                    data = bytearray(await _read(space, page * PAGE, PAGE))
                    folio.data = data + bytes(PAGE - len(data))

    async def load(self, space: AddressSpace, address: int, size: int) -> bytes:
        out = bytearray()
        while size:
            page, at = divmod(address, PAGE)
            take = min(size, PAGE - at)
            folio = await self._fault(space, page)
            assert folio.data is not None
            out += folio.data[at : at + take]
            address, size = address + take, size - take
        return bytes(out)

    async def store(self, space: AddressSpace, address: int, data: bytes) -> None:
        """Through a mapping: the page is read, changed and dirty."""
        while data:
            page, at = divmod(address, PAGE)
            part = data[: PAGE - at]
            folio = await self._fault(space, page)
            assert folio.data is not None
            folio.data[at : at + len(part)] = part
            folio.dirty = True
            address, data = address + len(part), data[len(part) :]

    async def pwrite(self, space: AddressSpace, address: int, data: bytes) -> None:
        """write(2), within one page: through the cache to the server."""
        page, at = divmod(address, PAGE)
        folio = self._folio(space, page)
        async with folio.lock:
            self.writes.append(page)
            await _write(space, address, data)
            if folio.data is not None:
                folio.data[at : at + len(data)] = data
            elif len(data) == PAGE:
                folio.data = bytearray(data)

    async def invalidate(self, space: AddressSpace, first_page: int, num_pages: int) -> None:
        started = trio.current_time()
        first, end = first_page, first_page + num_pages if num_pages else 1 << 40
        self.invals.append((first, end))
        await trio.lowlevel.checkpoint()
        for page in sorted(page for owner, page in self.folios if owner is space and first <= page < end):
            folio = self.folios[space, page]
            async with folio.lock:
                if folio.dirty:
                    folio.dirty = False
                    await self._write_back(space, page, folio)
                folio.data = None
        assert trio.current_time() - started < PATIENCE, "a request waited for the INVAL that waited for it"

    async def _write_back(self, space: AddressSpace, page: int, folio: Folio) -> None:
        """The kernel has nobody to tell of a failure: the bytes are gone."""
        assert folio.data is not None
        self.writes.append(page)
        try:
            await _write(space, page * PAGE, bytes(folio.data)[: max(0, space.size - page * PAGE)])
        except TtmError as error:
            raise AssertionError(f"the writeback of page {page} failed, its bytes are lost: {error}") from error

    async def writeback(self, space: AddressSpace) -> None:
        """fsync: dirty folios go to the server and stay."""
        for key, folio in list(self.folios.items()):
            if key[0] is space:
                async with folio.lock:
                    if folio.dirty and folio.data is not None:
                        folio.dirty = False
                        await self._write_back(space, key[1], folio)

    def truncate(self, space: AddressSpace, size: int) -> None:
        """What the kernel does to its cache at ftruncate, before the server hears of it."""
        for (owner, page), folio in self.folios.items():
            if owner is not space or folio.data is None:
                continue
            if page * PAGE >= size:
                folio.data, folio.dirty = None, False
            elif (page + 1) * PAGE > size:
                cut = size - page * PAGE
                folio.data[cut:] = bytes(PAGE - cut)
