"""Policies: who is in office on a device for eviction, prefetch and promotion, and how one comes there.

What a policy file does is foreign code: it is found and read in a thread, and run within a deadline. What fails is
ejected, `report` is told of it, and the device goes on as it does without policies.
"""

import errno
import shlex
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import trio

from ttmfs.driver.advisers import FaultAdviser, HomeKeeper, RegionAdviser
from ttmfs.driver.group_adviser import GroupAdviser
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.promotion import Promoter
from ttmfs.errors import TtmError, no_such
from ttmfs.observe import points
from ttmfs.policy import deadline
from ttmfs.policy.api import Kind
from ttmfs.policy.choice import NOBODY
from ttmfs.policy.parameters import Spec, parse_spec
from ttmfs.policy.promote import PromoteAdviser
from ttmfs.policy.registry import Prepared, available, prepare, shipped_names
from ttmfs.policy.seat import Ejection
from ttmfs.ttm.dmem import Group
from ttmfs.units import PAGE_SIZE


class Policies:
    """The policies of one device."""

    def __init__(self, vdev: Hardware) -> None:
        self.owner: int | None = None
        """A policy file must be this user's or root's; None: whoever's it is."""
        self.report: Callable[[Ejection], None] = lambda ejection: None
        self._trace = vdev.ttm.trace
        memory = vdev.ttm.pages_limit * PAGE_SIZE
        self.evict = {
            name: RegionAdviser(manager, self._ejected, size=memory) for name, manager in vdev.ttm.managers.items()
        }
        self._dmem = vdev.ttm.dmem
        self._dmem.gone = self._group_gone
        self.prefetch = FaultAdviser(vdev.ttm, self._ejected)
        self.promote = PromoteAdviser(self._ejected)
        self.promoter = Promoter(vdev, self.promote)
        vdev.ttm.homes = HomeKeeper(self.promote)
        self._installing = trio.Lock()

    def _ejected(self, ejection: Ejection) -> None:
        points.policy_ejected(self._trace, kind=ejection.kind, region=ejection.region, why=ejection)
        self.report(ejection)

    def _group_gone(self, group: Group) -> None:
        for adviser in self.evict.values():
            adviser.retire(group)

    # -- changing ------------------------------------------------------------------------------------------------

    async def choose(self, kind: Kind, region: str, prepared: Prepared | None) -> None:
        """This policy from now on. TtmError(EINVAL) where it cannot come into office; the former one stays then.

        Residents are handed over in slices, the former policy being asked until then.
        """
        # One after the other: the later one of two writes has the last word.
        async with self._installing:
            with closing(self._steps(kind, region, prepared)) as steps:
                for _ in steps:
                    await trio.lowlevel.checkpoint()

    def choose_now(self, kind: Kind, words: list[str]) -> None:
        """All of it, where nothing runs yet. TtmError as `parse`, `prepare` and `choose`."""
        region, spec = self.parse(kind, words)
        for _ in self._steps(kind, region, self.prepare(spec)):
            pass

    def prepare(self, spec: Spec) -> Prepared | None:
        """Find it, a file being read anew each time; None for nobody. May block: it belongs into a thread.

        TtmError: EINVAL for what cannot be, EACCES a file of somebody else's, or what reading it says.
        """
        return prepare(spec, self.owner) if spec.name != NOBODY[spec.kind] or spec.args else None

    def parse(self, kind: Kind, words: list[str]) -> tuple[str, Spec]:
        """`[[GROUP:]REGION] NAME [key=value…]`: whose it is ("" for what is the device's) and the policy.

        TtmError: EINVAL; ENOENT there is no such group.
        """
        region = ""
        if kind == "evict":
            regions = " ".join(self.evict)
            if len(words) < 2:
                said = f"say REGION NAME [key=value…] or GROUP:REGION NAME [key=value…], REGION one of {regions}"
                names = f"NAME one of {' '.join(shipped_names(kind))}, or PATH.py:Class"
                raise TtmError(errno.EINVAL, f"{said}, {names}")
            region, *words = words
            adviser, group = self._whose(region)
            region = adviser.region.name if group is None else f"{group.name}:{adviser.region.name}"
        if not words:
            raise no_such("", f"{kind} policy", shipped_names(kind), ", or PATH.py:Class")
        spec = parse_spec(kind, words)
        if spec.where is not None and spec.where[0].endswith(".py") and not spec.where[0].startswith("/"):
            raise TtmError(errno.EINVAL, f"{spec.name[:300]!r}: say the whole path: the daemon is elsewhere")
        return region, spec

    def _whose(self, where: str) -> tuple[RegionAdviser, Group | None]:
        """What `REGION` or `GROUP:REGION` names; the root group's is the region's. TtmError as `parse`."""
        path, _, region = where.rpartition(":")
        adviser = self.evict.get(region)
        if adviser is None:
            raise no_such(region, "region", self.evict)
        if not path.strip("/"):
            return adviser, None
        group = self._dmem.root.find(path)
        if group is None:
            raise TtmError(errno.ENOENT, f"there is no group {path[:80]!r}: see groups/, mkdir makes one")
        if region not in group.pools:
            raise no_such(region, "region that groups are charged for", group.pools)
        return adviser, group

    def _steps(self, kind: Kind, region: str, prepared: Prepared | None) -> Generator[int]:
        """Do it; a generator with a step after each slice of residents."""
        if kind == "evict":
            adviser, group = self._whose(region)
            if prepared is None:
                adviser.retire(group)
            else:
                yield from adviser.install(prepared, group)
        elif prepared is None:
            (self.prefetch if kind == "prefetch" else self.promote).retire()
        elif kind == "prefetch":
            self.prefetch.install(prepared)
        else:
            self.promote.install(prepared)
            self.promoter.begin()

    def close(self) -> None:
        """The device stops: nobody is asked any more."""
        for adviser in self.evict.values():
            for group in tuple(adviser.groups):
                adviser.retire(group)
            adviser.retire()
        self.prefetch.retire()
        self.promote.retire()
        deadline.stand_down()

    # -- showing -------------------------------------------------------------------------------------------------

    def text(self, kind: Kind) -> str:
        """Who is in office: a line for each region, then one for each group that has a policy of its own, or one."""
        if kind == "evict":
            regions = [f"{region} {adviser.policy.name}\n" for region, adviser in self.evict.items()]
            return "".join([*regions, *(f"{shlex.quote(one.name)} {one.policy.name}\n" for one in self._of_groups())])
        return f"{(self.prefetch.policy if kind == 'prefetch' else self.promote).name}\n"

    def _of_groups(self) -> list[GroupAdviser]:
        """The groups that have a policy of their own."""
        return [one for adviser in self.evict.values() for one in adviser.groups.values() if one.policy.in_office]

    def chosen(self) -> list[str]:
        """Who is in office where a device without policies has nobody, as the words that choose it: `evict vram fifo`.
        """
        found = [f"evict {region} {one.policy.name}" for region, one in self.evict.items() if one.policy.active]
        found += [f"evict {shlex.quote(one.name)} {one.policy.name}" for one in self._of_groups()]
        if self.prefetch.policy.active:
            found.append(f"prefetch {self.prefetch.policy.name}")
        if self.promote.active:
            found.append(f"promote {self.promote.name}")
        return found

    def stats(self) -> dict[str, Any]:
        """What each has been asked, what came of it, and how long it took."""
        groups = [one for adviser in self.evict.values() for one in adviser.groups.values()]
        return {
            "evict": {
                **{region: adviser.policy.as_dict() for region, adviser in self.evict.items()},
                **{one.name: one.policy.as_dict() for one in groups},
            },
            "prefetch": self.prefetch.policy.as_dict(),
            "promote": {**self.promote.as_dict(), "displaced": len(self.promote.displaced_bos)},
        }


def available_text() -> str:
    """`policies/available`: a line each, and what of the installed packages cannot be loaded. May take time."""
    entries, problems = available()
    return "".join([*(f"{entry.line()}\n" for entry in entries), *(f"# {problem}\n" for problem in problems)])
