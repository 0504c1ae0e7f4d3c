"""Limits: what each user may have (`--user-limit`), and whether what accounts say adds up.

A limit is `WHAT=AMOUNT`: `memory` (pages in memory and in the store), a region with memory or addresses of its own, or
`bos` (files of bo/ and svm/). An amount of memory is a size, or a part of what there is, as `50%`.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ttmfs.driver.hardware import Hardware
from ttmfs.errors import TtmError
from ttmfs.ttm.account import BOS, MEMORY, SWAP, Account
from ttmfs.ttm.audit import with_pauses
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.device import Device
from ttmfs.ttm.dmem import Pool
from ttmfs.ttm.drain import drain
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import Resource
from ttmfs.ttm.tt import TT
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, format_size, parse_size

RESERVED_NAMES: Final = (MEMORY, SWAP, BOS)
"""Names that no region may have."""


def parse_user_limit(text: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """The limits that `text` says, separated by commas: pages, and a number for `bos`; "" is none.

    `sizes`: bytes that there are, of `memory` and of each region. TtmError(EINVAL) naming the wrong word.
    """
    limits: dict[str, int] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        what, _, amount = word.partition("=")
        if what != BOS and what not in sizes:
            raise TtmError(errno.EINVAL, f"user limit {word[:80]!r}: say one of {' '.join((*sizes, BOS))}=AMOUNT")
        if what in limits:
            raise TtmError(errno.EINVAL, f"user limit {word[:80]!r}: {what} has a limit already")
        limits[what] = _number(word, amount) if what == BOS else _pages(word, amount, sizes[what])
    return limits


def _number(word: str, amount: str) -> int:
    if not amount.isascii() or not amount.isdigit() or len(amount) > 18:
        raise TtmError(errno.EINVAL, f"user limit {word[:80]!r}: say a number, as in bos=10000")
    return int(amount)


def _pages(word: str, amount: str, size: int) -> int:
    """A size or a percentage, in pages, rounded down."""
    if not amount.endswith("%"):
        try:
            return parse_size(amount) >> PAGE_SHIFT
        except TtmError as error:
            raise TtmError(errno.EINVAL, f"user limit {word[:80]!r}: {error.message}, or a part as in 50%") from None
    try:
        part = float(amount[:-1])
    except ValueError:
        part = -1.0
    if not 0 <= part <= 100:
        raise TtmError(errno.EINVAL, f"user limit {word[:80]!r}: say a part between 0% and 100%")
    return int(size * part / 100) >> PAGE_SHIFT


def format_user_limit(limits: Mapping[str, int]) -> str:
    """As `parse_user_limit` reads it."""
    amounts = {what: str(limit) if what == BOS else format_size(limit << PAGE_SHIFT) for what, limit in limits.items()}
    return ",".join(f"{what}={amount}" for what, amount in amounts.items())


def limited_sizes(vdev: Hardware) -> dict[str, int]:
    """What a user can be limited in, and how many bytes there are."""
    regions = {name: manager.size for name, manager in vdev.ttm.managers.items() if name != SYSTEM}
    return {MEMORY: vdev.config.memory, **regions}


def set_user_limit(vdev: Hardware, text: str) -> None:
    """From now on. What somebody has is not taken away. TtmError(EINVAL); nothing has changed then."""
    limits = parse_user_limit(text, limited_sizes(vdev))
    # The same object for all: it is every account's.
    vdev.ttm.accounts.limits.clear()
    vdev.ttm.accounts.limits.update(limits)


def check_accounts(vdev: Hardware) -> list[str]:
    """Sentences where what is charged differs from what is handed out, in all and by account, as of now."""
    return [sentence for sentence in account_check_steps(vdev) if sentence is not None]


def account_check_steps(vdev: Hardware) -> Iterator[str | None]:
    """The same, with a None wherever others may run; see `believed`."""
    ttm = vdev.ttm
    books = {name: manager.usage >> PAGE_SHIFT for name, manager in ttm.managers.items()}
    yield from ttm.accounts.check(books | {MEMORY: vdev.pool.in_use_pages})
    found: dict[Account, dict[str, int]] = {}
    for who_has in ttm.accounts.elsewhere:
        for account, what, pages in who_has():
            _count(found, account, what, pages)
    for bo in with_pauses(ttm.bos):
        if bo is None:
            yield None
            continue
        if bo.resource is not None:
            _count(found, bo.resource.account, bo.mem_type, bo.resource.num_pages)
        _count_tts(found, bo.tts)
    for resource in _unassigned(ttm):
        _count(found, resource.account, resource.mem_type, resource.num_pages)
    regions = (*ttm.managers, SWAP)
    # Those of users too that are charged and have nothing.
    for account in dict.fromkeys((*found, *ttm.accounts.users())):
        if account is ttm.accounts.root:
            continue
        has = found.get(account, {})
        for what in regions:
            charged, there = account.charged.get(what, 0), has.get(what, 0)
            if charged != there:
                yield f"accounts: {account.name} is charged {charged} of {what} and has {there}"
        if has.get(MEMORY, 0) > account.charged.get(MEMORY, 0):
            yield f"accounts: {account.name} has {has[MEMORY]} of memory, more than is charged"


async def set_max(vdev: Hardware, pool: Pool, size: int) -> int:
    """Bytes that a group may have of a region from now on; what it has beyond goes at once. Returns how much went.

    What cannot go stays, and nothing comes. TtmError as of `drain`; the new max holds all the same.
    """
    pool.max = size
    return await drain(vdev.ttm.managers[pool.region], pool, OperationContext())


def check_groups(vdev: Hardware) -> list[str]:
    """Sentences where what groups are charged differs from what is handed out, in all and by group, as of now."""
    return [sentence for sentence in group_check_steps(vdev) if sentence is not None]


def group_check_steps(vdev: Hardware) -> Iterator[str | None]:
    """The same, with a None wherever others may run; see `believed`."""
    ttm = vdev.ttm
    yield from ttm.dmem.check({name: manager.usage for name, manager in ttm.managers.items()})
    has: dict[Pool, int] = {}
    for bo in with_pauses(ttm.bos):
        if bo is None:
            yield None
        elif bo.resource is not None:
            _add(has, bo.resource)
    for resource in _unassigned(ttm):
        _add(has, resource)
    for group in ttm.dmem.root.walk():
        for region, pool in group.pools.items():
            if pool.usage != has.get(pool, 0):
                yield f"dmem: {group} is charged {pool.usage} bytes of {region} and has {has.get(pool, 0)}"


def _unassigned(ttm: Device) -> list[Resource]:
    """What is allocated for moves under way."""
    return [resource for manager in ttm.managers.values() for resource in manager.unassigned]


def _add(has: dict[Pool, int], resource: Resource) -> None:
    """What a resource takes, of its group and of those above it."""
    for pool in () if resource.pool is None else resource.pool.chain:
        has[pool] = has.get(pool, 0) + resource.num_pages * PAGE_SIZE


def _count_tts(found: dict[Account, dict[str, int]], tts: Iterable[TT]) -> None:
    for tt in tts:
        if not tt.external:
            _count(found, tt.account, MEMORY, tt.populated_pages + tt.ahead_pages + tt.taken)
            _count(found, tt.account, SWAP, tt.backed_up_pages)


def _count(found: dict[Account, dict[str, int]], account: Account, what: str, pages: int) -> None:
    has = found.setdefault(account, {})
    has[what] = has.get(what, 0) + pages
