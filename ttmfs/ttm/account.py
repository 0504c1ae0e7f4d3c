"""Account: who pays for which pages (dmem_cgroup_pool_state and its page_counter in the kernel).

Everything that takes space says so here, and nowhere else: the managers for the resources that they hand out, a tt and
an address space for pages of the pool and slots of the store, the namespaces for files. What is charged keeps its
account until it is given back: a ghost carries the charge of the space that it keeps, and a pipelined eviction ends it
at once. An account passes all on to its parent, so that of the root is what there is, and `check` says where that
differs from the books of those who hand out.

Charging never fails. Whoever is about to allocate asks `Account.check` first, with no await in between; what other
people's needs move about is not asked for (`OperationContext.unlimited`), so that nobody's BO stays in the way because
its owner is over a limit. Memory and store count together for the limit of `memory`: a page that is backed up and comes
back was paid for.
"""

import errno
from collections.abc import Callable, Iterable, Mapping
from typing import Final
from weakref import WeakValueDictionary

from ttmfs.errors import TtmError
from ttmfs.units import PAGE_SHIFT, format_size

MEMORY: Final = "memory"
"""Pages of the pool, in whatever region the BO is."""
SWAP: Final = "swap"
"""Pages in the store."""
BOS: Final = "bos"
"""BO files and address spaces."""

SLACK_PAGES: Final = 256
"""Of memory: by how many pages requests may go beyond a limit that nothing can be waited for. That is 1 MiB."""

_UNLIMITED: Final[Mapping[str, int]] = {}
_BOUNDLESS: Final = 1 << 62


class Account:
    """What somebody has, in pages by region, `memory` and `swap`, and in files (`bos`); nothing that is 0 is listed.

    `in_flight`: pages of memory that have content neither in a tt nor in a space yet, since they are for content that
    comes back from the store and is paid for there. `limits`: the most that it may have, in the same units.
    """

    __slots__ = ("__weakref__", "_chain", "charged", "in_flight", "limits", "name", "refused")

    def __init__(self, name: str, parent: "Account | None" = None, limits: Mapping[str, int] = _UNLIMITED) -> None:
        self.name = name
        self.limits = limits
        self.charged: dict[str, int] = {}
        self.in_flight = 0
        self.refused = 0
        """How often a limit was in somebody's way."""
        self._chain: tuple[Account, ...] = (self, *(parent._chain if parent is not None else ()))

    def charge(self, what: str, count: int) -> None:
        """It has `count` more (less, if negative) of `what` from now on, and so have all above it."""
        if not count:
            return
        for account in self._chain:
            charged = account.charged
            now = charged.get(what, 0) + count
            if now:
                charged[what] = now
            else:
                del charged[what]

    def uncharge(self, what: str, count: int) -> None:
        """It has given `count` of `what` back."""
        self.charge(what, -count)

    def charge_flight(self, pages: int) -> None:
        """`pages` more (less, if negative) of its memory wait for content."""
        for account in self._chain:
            account.in_flight += pages

    def used(self, what: str) -> int:
        """What counts against the limit of `what`."""
        charged = self.charged.get(what, 0)
        return charged + self.charged.get(SWAP, 0) - self.in_flight if what == MEMORY else charged

    @property
    def limited(self) -> bool:
        """Is there any limit?"""
        return any(account.limits for account in self._chain)

    def room(self, what: str) -> int:
        """How much more of `what` it may have; negative when it has too much already."""
        room = _BOUNDLESS
        for account in self._chain:
            limit = account.limits.get(what)
            if limit is not None:
                room = min(room, limit - account.used(what))
        return room

    def most(self, what: str) -> int:
        """How much of `what` it may have at all."""
        return min(account.limits.get(what, _BOUNDLESS) for account in self._chain)

    def limited_by(self, what: str, count: int, *, slack: int = 0) -> "Account | None":
        """The nearest one, upwards, that may not have `count` more of `what`; None: it may have them."""
        for account in self._chain:
            limit = account.limits.get(what)
            if limit is not None and account.used(what) + count > limit + slack:
                return account
        return None

    def pays_for(self, account: "Account") -> bool:
        """Does it pay for what is charged to `account`: is it that one, or above it?"""
        return self in account._chain

    def check(self, what: str, count: int, *, slack: int = 0) -> None:
        """TtmError(EDQUOT) if it may not have `count` more of `what`: asked right before they are taken."""
        account = self.limited_by(what, count, slack=slack)
        if account is not None:
            for one in self._chain:
                one.refused += 1
            raise account.over(what, account.limits[what], count)

    def over(self, what: str, limit: int, count: int) -> TtmError:
        """The EDQUOT."""
        used = self.used(what)
        if what == BOS:
            message = f"{self.name} has {used} BOs and address spaces of the {limit} that it may have: unlink some"
        else:
            has, most, more = (format_size(pages << PAGE_SHIFT) for pages in (used, limit, count))
            needs = f"and needs {more} more" if count else "and gets nothing new"
            helps = "unlink or truncate" if what == MEMORY else "evict or unlink"
            message = f"{self.name} has {has} of the {most} of {what} that it may have, {needs}: {helps} something"
        return TtmError(errno.EDQUOT, f"{message}, or mount with another --user-limit")


class Accounts:
    """The accounts of one device: the root, and one for each user that has something. The limits are every user's."""

    def __init__(self) -> None:
        self.root = Account("the device")
        self.limits: dict[str, int] = {}
        """Of each user but those that are `exempt`: pages by region and of `memory`, number of `bos`."""
        self.exempt = frozenset({0})
        """Users without limits: root, and whose device it is. Known before the first account is made."""
        self.elsewhere: list[Callable[[], Iterable[tuple[Account, str, int]]]] = []
        """Who else has something, beside BOs: asked who pays, for what, and for how much of it."""
        self._users: WeakValueDictionary[int, Account] = WeakValueDictionary()

    def of(self, uid: int) -> Account:
        """The account of a user. It lives as long as something refers to it."""
        account = self._users.get(uid)
        if account is None:
            limits = _UNLIMITED if uid in self.exempt else self.limits
            account = self._users[uid] = Account(f"user {uid}", self.root, limits)
        return account

    def users(self) -> list[Account]:
        """Those of users that have something."""
        return [account for account in self._users.values() if account.charged]

    def check(self, books: Mapping[str, int]) -> list[str]:
        """Sentences about what does not add up: `books` says what was handed out, in pages or files."""
        wrong = []
        charged = self.root.charged
        for what, there in books.items():
            if charged.get(what, 0) != there:
                wrong.append(f"accounts: {charged.get(what, 0)} of {what} are charged, {there} are handed out")
        for account in (self.root, *self._users.values()):
            wrong += [
                f"accounts: {account.name} has {count} of {what}"
                for what, count in account.charged.items()
                if count < 0
            ]
        return wrong
