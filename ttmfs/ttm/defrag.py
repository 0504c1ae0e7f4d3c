"""Defrag: re-back a resident BO with fresh pages at the beneficial order, by way of an ordinary move (ctx->defrag).

Until `Rebacking.commit` the BO's tt is the old one and nothing has happened: a failure to make the fresh tt, to
populate it or to reserve a fence slot zaps nothing and is seen by nobody. From `commit` on `bo.tt` is the fresh tt and
`bo.defrag_old_tt` the old one, which the driver is handed as the source of its copy and a ghost keeps until the copy's
fence signals. `undo` takes back a move that failed.

Pieces of 2**beneficial_order pages that are populated whole get one block each; what is populated in part (a tail, a
sparse piece) keeps its shape, because only a whole piece can be better off than it was.
"""

import errno

import numpy as np
from numpy.typing import NDArray

from ttmfs.memory.runs import is_run
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import PlaceFlag
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT


def whole_pieces(tt: TT) -> NDArray[np.intp]:
    """First index of every aligned piece of the beneficial order whose pages are all there, ascending."""
    order = tt.pool.beneficial_order
    return tt.whole_pieces(order)[0] if order else np.zeros(0, np.intp)


def nothing_to_gain(bo: BufferObject, *, compact: bool = False) -> bool:
    """Can fresh pages not be better than those it has? Success without a move, then.

    No tt, no whole piece of the beneficial order (a small BO never has one), or part of it in the store: what goes
    there is wanted gone, and comes back in fresh pages anyway. With `compact` any page counts.
    """
    tt = bo.tt
    if tt is None or tt.external or bo.resource is None or not bo.resource.manager.use_tt:
        return True
    if tt.backed_up_pages > 0:
        return True
    if compact:
        return not tt.populated_pages
    order = tt.pool.beneficial_order
    if not order or tt.populated_pages < 1 << order:
        return True
    return not (tt.is_populated or len(whole_pieces(tt)))


def improvable(bo: BufferObject) -> bool:
    """Has it a whole piece that is not one block of the beneficial order?"""
    if nothing_to_gain(bo):
        return False
    tt = bo.tt
    assert tt is not None
    order = tt.pool.beneficial_order
    return not tt.are_blocks(order, tt.whole_pieces(order)[1])


def is_defrag(bo: BufferObject, resource: Resource, ctx: OperationContext, *, evict: bool) -> bool:
    """Is this move to `resource` to re-back `bo`? Only the target's own, from tt to tt, is: no hop, no victim."""
    return (
        ctx.defrag
        and not evict
        and resource.manager.use_tt
        and PlaceFlag.TEMPORARY not in resource.flags
        and not nothing_to_gain(bo, compact=ctx.compact)
    )


def fresh_tt(bo: BufferObject) -> TT:
    """ttm_tt_create and ttm_tt_populate of a defrag: a tt with memory wherever the BO's own has some, unzeroed.

    The device pays for it until it is the BO's: nobody is over a limit for a while because of a second copy.

    TtmError(ENOMEM) at once when the beneficial order is not to be had; nothing is evicted or reclaimed for it. The BO
    is not touched. Synchronous.
    """
    old = bo.tt
    assert old is not None
    inject = bo.device.inject
    inject.check("tt_create", errno.ENOMEM, f"making a tt for {bo.name!r}", bo=bo.name)
    fresh = TT(old.pool, old.num_pages, old.caching, old.store, bo.device.accounts.root)
    inject.check("page_alloc", errno.ENOMEM, f"{old.populated_pages} pages for {bo.name!r}", bo=bo.name)
    size = 1 << old.pool.beneficial_order
    pieces = whole_pieces(old)
    try:
        # No larger blocks: they would be no use to the BO, and others may need them.
        blocks = fresh.alloc(
            len(pieces) * size, max_order=old.pool.beneficial_order, zero=False, defrag=True, reclaim_backoff=True
        )
        fresh.adopt((pieces[:, None] + np.arange(size)).ravel(), blocks, in_blocks=is_run(pieces // size))
        _follow(old, fresh)
    except BaseException:
        fresh.unpopulate()
        raise
    return fresh


def _follow(old: TT, fresh: TT) -> None:
    """Give `fresh` memory, unzeroed, at exactly the entries where `old` has some. TtmError(ENOMEM)."""
    if fresh.num_pages != old.num_pages:
        fresh.resize(old.num_pages)
    present = old.present()
    if len(present) == fresh.populated_pages and fresh.is_populated:
        return
    has = fresh.present()
    fresh.depopulate(np.setdiff1d(has, present, assume_unique=True))
    missing = np.setdiff1d(present, has, assume_unique=True)
    if len(missing):
        below = max(0, old.pool.beneficial_order - 1)
        fresh.adopt(missing, fresh.alloc(len(missing), max_order=below, zero=False, reclaim_backoff=True))


class Rebacking:
    """The move of a BO from its tt to a fresh one. Nothing is awaited from its `commit` until the copy is submitted."""

    verb = "was backed anew"

    def __init__(self, bo: BufferObject) -> None:
        self.bo = bo
        self.moved_pages = 0
        """Pages that the copy covers: those of the fresh tt."""

    @property
    def source(self) -> TT | None:
        """What the driver copies from, to `bo.tt`: the old tt, once committed."""
        return self.bo.defrag_old_tt

    def prepare(self) -> None:
        """Make the fresh tt and reserve a slot for the fence. TtmError(ENOMEM): nobody was disturbed."""
        self.bo.fresh_tt = fresh_tt(self.bo)
        self.bo.resv.reserve_fences(1)

    async def commit(self) -> None:
        """Make the fresh tt the BO's, and the old one the source of the driver's move. Waits for nothing.

        Requests that came while the BO was unmapped may have filled holes of the old tt: they get memory now.
        TtmError(ENOMEM): nothing has changed.
        """
        bo, old, fresh = self.bo, self.bo.tt, self.bo.fresh_tt
        assert old is not None
        assert fresh is not None
        assert bo.defrag_old_tt is None
        _follow(old, fresh)
        old.drop_ahead()
        old.past_pool = True
        bo.defrag_old_tt = old
        old.pay(bo.device.accounts.root)
        fresh.pay(bo.account)
        bo.set_tt(fresh)
        bo.fresh_tt = None
        self.moved_pages = fresh.populated_pages

    def undo(self) -> None:
        """The move failed, before or after the commit: the BO is on its old tt, the fresh one is freed."""
        bo = self.bo
        fresh, bo.fresh_tt = bo.fresh_tt, None
        old, bo.defrag_old_tt = bo.defrag_old_tt, None
        if old is not None:
            fresh = bo.tt
            old.past_pool = False
            bo.set_tt(old)
            old.pay(bo.account)
        if fresh is not None:
            fresh.unpopulate()

    def done(self) -> None:
        """It succeeded. A driver that copied synchronously, and made no ghost, leaves the old tt here."""
        bo = self.bo
        bo.device.defrag_list.leave(bo)
        old, bo.defrag_old_tt = bo.defrag_old_tt, None
        if old is not None:
            old.fini()
