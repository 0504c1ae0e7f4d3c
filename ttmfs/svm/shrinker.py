"""The shrinker of address spaces: their system pages go to the swap store as those of BOs do, coldest chunk first.

It is one of the device's Shrinkables: ttmfs.ttm.shrinker asks it for its share. Nobody's reservation is waited for; a
chunk that a request, a job or a move has something to do with is passed over.
"""

from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

import trio

from ttmfs.errors import TtmError
from ttmfs.svm.chunk import Chunk
from ttmfs.svm.swap import idle, may_go, store_chunk
from ttmfs.ttm.context import OperationContext

if TYPE_CHECKING:
    from ttmfs.svm.space import AddressSpace


class SpaceShrinker:
    """Of the chunks of all spaces in their order of use, the coldest first (see Shared.warmth)."""

    def __init__(self, warmth: "OrderedDict[Chunk, AddressSpace]", spaces: "Collection[AddressSpace]") -> None:
        self._warmth = warmth
        self._spaces = spaces
        self.owed = 0

    def count(self) -> int:
        """System pages of all spaces."""
        return sum(space.held_pages for space in self._spaces)

    def busy(self) -> bool:
        """Is there a chunk whose pages are just being stored or moved, or that a job, a migration or somebody else's
        request needs for now? One that asks is who wants to know.
        """
        askers = sum(len(space.asked) for space in self._spaces)
        for chunk in self._warmth:
            if chunk.moves or chunk.busy_pages() or (chunk.stored is not None and chunk.stored.storing):
                return True
            askers += chunk.users
        return askers > 1

    async def scan(self, pages: int, ctx: OperationContext) -> int:
        """About `pages` pages to the store; returns how many went. Busy chunks are waited for unless `no_wait_gpu`.

        What the store says ends it: pages that find no room there stay.
        """
        out = 0
        for _ in range(len(self._warmth)):
            if out >= pages or not self._warmth:
                break
            chunk, space = next(iter(self._warmth.items()))
            # Whoever else shrinks meanwhile takes the next one; one that cannot go is in use.
            self._warmth.move_to_end(chunk)
            try:
                if not ctx.no_wait_gpu:
                    await idle(chunk)
                out += await store_chunk(space, chunk, pages - out)
            except TtmError as error:
                space.vdev.ttm.counters.backup.failed += 1
                space.last_error = error.message
                break
            finally:
                self._put_back(space, chunk)
            await trio.lowlevel.checkpoint()
        return out

    def _put_back(self, space: "AddressSpace", chunk: Chunk) -> None:
        """Behind all others it stays if it could not go; not so if it has not been asked for all of its pages."""
        if chunk in self._warmth:
            if not chunk.pages.present:
                del self._warmth[chunk]
            elif may_go(space, chunk) and not chunk.handed:
                self._warmth.move_to_end(chunk, last=False)
