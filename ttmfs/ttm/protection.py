"""Protection: whose BOs one allocation may evict, as groups say (dmem_cgroup_state_evict_valuable, ttm_bo_evict_cb).

Over `max` only what is below the group whose limit is met goes. Otherwise `min` protects always, `low` in the first
walk. In the newer series a group that has less than what protects it may evict already where others take idle space
only.
"""

import errno
from typing import Literal

from ttmfs.errors import TtmError
from ttmfs.ttm.account import Account
from ttmfs.ttm.dmem import OverMax, Pool

Spared = Literal["", "own", "outside", "min", "low"]
"""Why a BO is no victim: "" it is one; `own` of the group that is entitled to more; `outside` of the group, or
the user, whose limit is met; `min`, `low` protected."""


def why_spared(test: Pool, limit: Pool | None, *, ignore_low: bool) -> Spared:
    """dmem_cgroup_state_evict_valuable: may a BO charged to `test` go, so that there is room below `limit`?

    `limit`: the pool whose `max` was met; None: nobody's, the region is full.
    """
    if limit is test:
        return ""
    if limit is not None:
        if limit.parent is None:
            return ""
        if limit not in test.chain:
            return "outside"
    least, low = test.effective(limit)
    stays = test.usage - test.leaving
    if stays <= least:
        return "min"
    return "low" if stays <= low and not ignore_low else ""


def common_ancestor(one: Pool, other: Pool) -> Pool:
    """dmem_cgroup_get_common_ancestor: the nearest one that both are below, or are."""
    return next(pool for pool in one.chain if pool in other.chain)


class Search:
    """What limits and groups say about the victims of one allocation (ttm_bo_alloc_state, ttm_bo_evict_walk's flags).

    `charge`: who is to have the space; None: nobody is charged for it. `may_try_low`: False when who is protected by
    `low` may take from the unprotected only.
    """

    __slots__ = (
        "_known", "_known_at", "anew", "charge", "hit_low", "ignore_low", "limit", "may_try_low", "payer",
    )  # fmt: skip

    def __init__(self, charge: Pool | None, *, may_try_low: bool = True) -> None:
        self.charge = charge
        self.limit: Pool | None = None
        """Whose `max` is in the way at the moment."""
        self.payer: Account | None = None
        """Which user's limit is: only what that one pays for goes then."""
        self.anew = False
        """Is something else in the way since the walk began, so that those whom it came past may be victims now?"""
        self.may_try_low = may_try_low
        self.ignore_low = False
        self.hit_low = False
        """`low` was what spared somebody."""
        self._known: dict[Pool, Spared] = {}
        self._known_at = -1

    def spares(self, test: Pool | None, account: Account) -> Spared:
        """Why a BO that is charged to `test`, and paid for by `account`, is no victim; "" when it is one."""
        if self.payer is not None and not self.payer.pays_for(account):
            return "outside"
        charge = self.charge
        if test is None or charge is None:
            return ""
        dmem = test.group.dmem
        if not dmem.count:
            return ""
        if self._known_at != dmem.changes:
            self._known_at = dmem.changes
            self._known = {}
        spared = self._known.get(test)
        if spared is None:
            spared = self._known[test] = self._judge(test, charge, ignore_low=self.ignore_low)
            if spared == "low":
                self.hit_low = True
        return spared

    def _judge(self, test: Pool, charge: Pool, *, ignore_low: bool) -> Spared:
        if not test.group.dmem.newer:
            return why_spared(test, self.limit, ignore_low=ignore_low)
        if not self.may_try_low and test is charge:
            return "own"
        limit = self.limit
        if limit is None:
            # Where that is the root, the kernel lets everything go: no group right below it would be protected.
            limit = common_ancestor(test, charge)
            limit = limit if limit.parent is not None or limit is test else None
        return why_spared(test, limit, ignore_low=ignore_low)

    def meets(self, error: TtmError, payer: Account | None) -> None:
        """What is in the way now: a `max` (OverMax), the limit of `payer` (EDQUOT), or that the region is full."""
        limit = error.pool if isinstance(error, OverMax) else None
        payer = payer if error.errno == errno.EDQUOT else None
        if limit is not self.limit or payer is not self.payer:
            self.limit, self.payer, self.anew = limit, payer, True
            self._known = {}

    @property
    def full(self) -> bool:
        """Is it no limit that is in the way, but that the region is full?"""
        return self.limit is None and self.payer is None

    def takes_low(self, test: Pool) -> bool:
        """Is a BO that is charged to `test` a victim only because `low` is ignored?"""
        charge = self.charge
        if not self.ignore_low or charge is None or not test.group.dmem.count:
            return False
        return self._judge(test, charge, ignore_low=False) == "low"

    def lower(self) -> bool:
        """One more attempt, in which `low` protects nobody? Only where it was what spared somebody."""
        if self.ignore_low or not self.hit_low or not self.may_try_low:
            return False
        self.ignore_low = True
        self._known = {}
        return True
