"""dmem: who has how much of which region, by groups of processes (kernel/cgroup/dmem.c, mm/page_counter.c).

A Group is a node of a tree; for each region it has a Pool, a counter that passes all on to the one above it. The charge
belongs to the resource: `ResourceManager.account` and `free` count it, and nobody else, so that a ghost carries the
charge of the space that it keeps and a pipelined eviction ends it at once. All sizes are bytes.

`max` is asked before space is allocated (`Pool.over`), with no await in between. `min` and `low` protect what a group
has: `Pool.effective` is page_counter_calculate_protection, who may be
evicted then is in `ttmfs.ttm.protection`.
"""

import errno
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal

from ttmfs.errors import TtmError
from ttmfs.units import format_size

UNLIMITED: Final = (1 << 63) - 1
"""PAGE_COUNTER_MAX, as the files' `max`."""
MAX_DEPTH: Final = 64
"""Groups in each other (cgroup.max.depth): a charge goes up all of them."""
MAX_GROUPS: Final = 1024
"""Groups of a device beside the root (cgroup.max.descendants)."""

Protection = Literal["newer", "released"]
"""Which kernel: the newer series, in which protection counts when space is allocated too, or 6.14 to 7.0."""


class Pool:
    """What one group has of one region (dmem_cgroup_pool_state), in bytes."""

    __slots__ = (
        "_claims_low", "_claims_min", "_dmem", "chain", "children_low", "children_min", "evictions", "group",
        "leaving", "low", "low_events", "max", "max_events", "min", "parent", "peak", "region", "usage",
    )  # fmt: skip

    def __init__(self, dmem: "Dmem", group: "Group", region: str, parent: "Pool | None") -> None:
        self._dmem = dmem
        self.group = group
        self.region = region
        self.parent = parent
        self.chain: tuple[Pool, ...] = (self, *(() if parent is None else parent.chain))
        """It and all above it, the root last."""
        self.usage = self.peak = 0
        self.leaving = 0
        """Bytes that are being evicted: two who see the same excess would else take twice as much as there is."""
        self.max = UNLIMITED
        self.min = self.low = 0
        self.children_min = self.children_low = 0
        """What the groups right below it have of what protects them (children_min_usage, children_low_usage)."""
        self._claims_min = self._claims_low = 0
        self.low_events = self.max_events = self.evictions = 0
        """How often: a BO of it went although `low` protected it, `max` was met, a BO of it was evicted."""

    def charge(self, size: int) -> None:
        """It has `size` more (less, if negative), and so have all above it (page_counter_charge)."""
        self._dmem.changes += 1
        for pool in self.chain:
            pool.usage += size
            pool.peak = max(pool.peak, pool.usage)
            if pool.min or pool.low:
                pool._propagate()

    def uncharge(self, size: int) -> None:
        """It has given `size` back (page_counter_uncharge)."""
        self.charge(-size)

    def leave(self, size: int) -> None:
        """`size` more of what it has is being evicted (less, if negative: it has gone, or stays)."""
        self._dmem.changes += 1
        for pool in self.chain:
            pool.leaving += size

    def over(self, size: int, *, but: "Pool | None" = None) -> "Pool | None":
        """The nearest one whose `max` does not let `size` more in; None: they may be charged.

        `but`: who has these bytes now, so that those above both get nothing more.
        """
        for pool in self.chain:
            if pool.usage + size > pool.max and (but is None or pool not in but.chain):
                return pool
        return None

    def room(self) -> int:
        """The most that could ever be charged: the smallest `max` on the way up."""
        return min(pool.max for pool in self.chain)

    def protect(self, *, low: int | None = None, min: int | None = None) -> None:
        """Set `low` or `min`, or both."""
        self._dmem.changes += 1
        self.low = self.low if low is None else low
        self.min = self.min if min is None else min
        self._propagate()

    def _propagate(self) -> None:
        """propagate_protected_usage: what it has of its protection counts for those beside it."""
        parent = self.parent
        if parent is None:
            return
        claims_min, claims_low = min(self.usage, self.min), min(self.usage, self.low)
        parent.children_min += claims_min - self._claims_min
        parent.children_low += claims_low - self._claims_low
        self._claims_min, self._claims_low = claims_min, claims_low

    def effective(self, root: "Pool | None" = None) -> tuple[int, int]:
        """(min, low) that protect it from who is below `root` too, or from everybody.

        page_counter_calculate_protection. The kernel keeps the values of a group that has nothing as they last were;
        here they are those of now.
        """
        path: list[Pool] = []
        for pool in self.chain:
            if pool is root or pool.parent is None:
                break
            path.append(pool)
        if not path:
            return 0, 0
        top, recursive = path[-1], self._dmem.recursive
        low, least = top.low, top.min
        for pool in reversed(path[:-1]):
            parent = pool.parent
            assert parent is not None
            usage, theirs = pool.usage, parent.usage
            least = _share(usage, theirs, pool.min, least, parent.children_min, recursive=recursive)
            low = _share(usage, theirs, pool.low, low, parent.children_low, recursive=recursive)
        return least, low

    def entitled(self, size: int) -> Literal["", "min", "low"]:
        """Would `size` more still be protected (dmem_cgroup_below_min, dmem_cgroup_below_low)? "": no."""
        if self.parent is None or not self._dmem.newer:
            return ""
        peaks = [pool.peak for pool in self.chain]
        self.charge(size)
        least, low = self.effective()
        usage = self.usage
        self.uncharge(size)
        for pool, peak in zip(self.chain, peaks, strict=True):
            pool.peak = peak
        return "min" if usage <= least else "low" if usage <= low else ""

    def check(self) -> Iterator[str]:
        """Sentences about what does not add up within the tree."""
        below = [group.pools[self.region] for group in self.group.children.values()]
        name = f"dmem: {self.group} in {self.region}"
        if self.usage < sum(pool.usage for pool in below) or self.usage < 0:
            yield f"{name}: {self.usage} bytes are charged, less than those below it have"
        for what, here, there in (
            ("min", self.children_min, sum(min(pool.usage, pool.min) for pool in below)),
            ("low", self.children_low, sum(min(pool.usage, pool.low) for pool in below)),
        ):
            if here != there:
                yield f"{name}: those below it use {there} bytes of their {what}, {here} are counted"


def _share(
    usage: int, parent_usage: int, setting: int, parent_effective: int, siblings: int, *, recursive: bool
) -> int:
    """effective_protection: a group's part of what protects the one above it.

    `siblings`: what all groups beside it, and itself, have of their own setting. Claims beyond what there is are cut in
    proportion; what nobody claims goes, if `recursive`, to who has more than its setting, in proportion to that.
    """
    protected = min(usage, setting)
    if siblings > parent_effective:
        return protected * parent_effective // siblings
    if recursive and parent_effective > siblings and parent_usage > siblings and usage > protected:
        return protected + (parent_effective - siblings) * (usage - protected) // (parent_usage - siblings)
    return protected


class Group:
    """A node of the tree (dmemcg_state). `name` is its path, "" of the root."""

    __slots__ = ("__weakref__", "children", "dmem", "name", "parent", "pools", "removed")

    def __init__(self, dmem: "Dmem", name: str, parent: "Group | None") -> None:
        self.dmem = dmem
        self.name = name
        self.parent = parent
        self.children: dict[str, Group] = {}
        self.removed = False
        self.pools: dict[str, Pool] = {
            region: Pool(dmem, self, region, None if parent is None else parent.pools[region])
            for region in dmem.regions
        }

    def __str__(self) -> str:
        return f"group {self.name!r}" if self.name else "the root group"

    @property
    def path(self) -> str:
        """As /proc/PID/cgroup would say it: "/" is the root."""
        return f"/{self.name}"

    @property
    def live(self) -> "Group":
        """It, or, once it was removed, the nearest one above it that was not: who is charged for what belongs to it."""
        group = self
        while group.removed:
            assert group.parent is not None
            group = group.parent
        return group

    @property
    def chain(self) -> "Iterator[Group]":
        """It and all above it, the root last."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    def find(self, path: str) -> "Group | None":
        """The group at a path below it."""
        group: Group | None = self
        for leaf in filter(None, path.split("/")):
            group = None if group is None else group.children.get(leaf)
        return group

    @property
    def charged(self) -> bool:
        """Has it, or one below it, anything?"""
        return any(pool.usage for pool in self.pools.values())

    def make(self, leaf: str) -> "Group":
        """A new group below it. The caller has looked whether there is one of that name.

        TtmError(EAGAIN), as cgroup_check_hierarchy_limits: too deep, or too many.
        """
        if sum(1 for _ in self.chain) > MAX_DEPTH:
            raise TtmError(errno.EAGAIN, f"{str(self)[:80]} is {MAX_DEPTH} groups deep, which is the most there may be")
        if self.dmem.count >= MAX_GROUPS:
            raise TtmError(errno.EAGAIN, f"there are {MAX_GROUPS} groups, which is the most there may be: rmdir some")
        group = Group(self.dmem, f"{self.name}/{leaf}" if self.name else leaf, self)
        self.children[leaf] = group
        self.dmem.count += 1
        return group

    def remove(self) -> None:
        """rmdir. TtmError(EBUSY): there are groups below it, or it has something.

        What belongs to it, and is charged for nothing, is its parent's then.
        """
        parent = self.parent
        if parent is None:
            raise TtmError(errno.EBUSY, "the root group stays")
        if self.children:
            raise TtmError(errno.EBUSY, f"{self} has groups below it: remove those first")
        for region, pool in self.pools.items():
            if pool.usage:
                has = f"{format_size(pool.usage)} of {region}"
                raise TtmError(errno.EBUSY, f"{self} has {has}: unlink or evict its BOs, or write objects/NAME/group")
        for pool in self.pools.values():
            pool.protect(low=0, min=0)
        del parent.children[self.name.rpartition("/")[2]]
        self.dmem.count -= 1
        self.removed = True
        self.dmem.gone(self)

    def walk(self) -> Iterator["Group"]:
        """It and all below it, parents first."""
        left = [self]
        while left:
            group = left.pop()
            yield group
            left += reversed(group.children.values())


class Dmem:
    """The groups of one device. `regions`: the bytes of each that is charged for; system is not, it has no size."""

    def __init__(self, regions: Mapping[str, int]) -> None:
        self.regions = dict(regions)
        self.protection: Protection = "newer"
        self.recursive = True
        """Protection that nobody below claims goes to all below (memory_recursiveprot); dmem always has it so."""
        self.changes = 0
        """Rises whenever anybody's protection may be another."""
        self.count = 0
        """Groups beside the root."""
        self.gone: Callable[[Group], None] = lambda group: None
        """Whoever keeps something for groups is told that one was removed."""
        self.root = Group(self, "", None)

    @property
    def newer(self) -> bool:
        """The rules of the newer series?"""
        return self.protection == "newer"

    def check(self, usage: Mapping[str, int]) -> list[str]:
        """Sentences where what is charged differs from what is handed out (`usage`, in bytes), or does not add up."""
        wrong = [
            f"dmem: {self.root.pools[region].usage} bytes of {region} are charged, {usage[region]} are handed out"
            for region in self.regions
            if self.root.pools[region].usage != usage[region]
        ]
        for group in self.root.walk():
            for pool in group.pools.values():
                wrong += pool.check()
        return wrong


class OverMax(TtmError):  # noqa: N818 - it says what
    """EAGAIN of dmem_cgroup_try_charge: `pool` is the one whose `max` is met. It never leaves ttmfs.ttm."""

    def __init__(self, pool: Pool, size: int) -> None:
        super().__init__(errno.EAGAIN, says_over(pool, size))
        self.pool = pool


def says_over(pool: Pool, size: int) -> str:
    """Why `size` bytes more are too many for `pool`."""
    has, most = format_size(pool.usage), format_size(pool.max)
    helps = "evict or unlink something of it, or write a larger dmem.max"
    limit = f"{pool.group} has {has} of the {most} of {pool.region} that it may have"
    return f"{limit}, and needs {format_size(size)} more: {helps}"
