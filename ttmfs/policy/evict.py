"""The eviction adviser of one region: asks a policy for victims, checks them, and does without it when it fails.

The core tells it what comes, is used and goes, and asks for victims:

    with adviser.ask(request) as answer:
        for bo in answer:          # usable ones only; may be none
            ...                    # try it: lock it, evict it, then ask anew

An answer is of use until the core's next await. Where it ends without a victim, because the policy has no more, was
ejected or is none (`lru`), the core walks its own list, so no request fails for what a policy does.

*Usable* is what is in this region and of the priority asked for, neither pinned nor protected, and was not yielded
before in this answer. Everything else is passed over and counted. That a BO is reserved at the moment is not the
policy's fault.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any, Final, Protocol

from ttmfs.policy.adviser import Adviser
from ttmfs.policy.api import BO, GoneWhy, Region, Request, UseWhy
from ttmfs.policy.deadline import Budget, run
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection, PolicyError, Runner, Seat

SLICE: Final = 1000
"""Residents that are handed over to a new policy at a time."""


class Residents(Protocol):
    """What the adviser asks the core about its region."""

    region: Region

    def residents(self) -> Iterator[BO]:
        """The BOs in the region, the least recently used first, pinned ones too; no ghosts.

        It follows the list as it changes between two steps: what has come or was used meanwhile is at its end, what
        has left is passed over. Whatever came before it ended was in it.
        """

    def a_victim(self, request: Request) -> BO | None:
        """Some BO that could go for this request, None when there is none."""


class _Office(Seat):
    """An eviction policy in office, and the residents that it knows of. `failure` is what ended its coming."""

    __slots__ = ("failure", "known")

    def take(self, region: Region) -> None:
        """Look its hooks up and attach it. PolicyError."""
        self.failure: PolicyError | None = None
        self.known: dict[BO, BO] = {}
        self.look_up("attach", "added", "used", "removed", "victims")
        if (attach := self.hooks["attach"]) is not None:
            self.call(Budget(), attach, region)

    def hand_over(self, bo: BO) -> None:
        """It knows of one more. PolicyError."""
        self.known[bo] = bo
        if (added := self.hooks["added"]) is not None:
            self.call(Budget(), added, bo)


class EvictAdviser(Adviser[_Office]):
    """The eviction policy of one region, or of a part of its residents. `report` is called with each ejection."""

    kind = "evict"
    nobody = "lru"

    def __init__(
        self, core: Residents, report: Callable[[Ejection], None], runner: Runner = run, *, part: str = ""
    ) -> None:
        """`part`: what only a part of the residents is called, for whom the region's order counts without a policy."""
        super().__init__(report, runner, part or core.region.name)
        if part:
            self._instead = "the region's order"
        self.core = core
        self._coming: _Office | None = None

    # -- who is in office ----------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Is there a policy to be asked, or being installed? The core's list alone decides when not."""
        return self._seat is not None or self._coming is not None

    @property
    def in_office(self) -> bool:
        """Is there a policy that answers?"""
        return self._seat is not None

    @property
    def wants_uses(self) -> bool:
        """Does anybody care for uses? Else READs that are answered from a view need not be told."""
        return any(office is not None and office.hooks["used"] is not None for office in (self._seat, self._coming))

    def retire(self) -> None:
        """Back to the core's own list."""
        self._coming = None
        super().retire()

    def install(self, prepared: Prepared) -> Iterator[int]:
        """Make a policy, hand the residents over and put it in office, the former one being asked until then.

        A generator: it yields after each slice how many were handed over, so that its caller can let others run.
        TtmError(EINVAL) where the policy cannot be made or fails meanwhile; the former one stays then.
        """
        coming = _Office.fill(prepared, self._run)
        try:
            coming.take(self.core.region)
            self._coming = coming
            residents = self.core.residents()
            done = 0
            while part := list(islice(residents, SLICE)):
                for bo in part:
                    if bo not in coming.known and bo.region == self.core.region.name:
                        coming.hand_over(bo)
                done += len(part)
                if len(part) == SLICE:
                    yield done
                if self._coming is not coming:
                    raise coming.failure or PolicyError("", "another one was installed meanwhile")
            self._appoint(coming)
        except PolicyError as failure:
            raise coming.refused(str(failure)) from None
        finally:
            if self._coming is coming:
                self._coming = None

    # -- what happens --------------------------------------------------------------------------------------------

    def added(self, bo: BO) -> None:
        """A BO came into the region, with the use that brought it there. (A policy being installed comes to it.)"""
        office = self._seat
        if office is not None:
            try:
                office.hand_over(bo)
            except PolicyError as failure:
                self._eject(office, failure)

    def used(self, bo: BO, why: UseWhy) -> None:
        """A resident BO was used."""
        for office in (self._seat, self._coming):
            if office is not None and bo in office.known:
                self._tell(office, "used", bo, why)

    def removed(self, bo: BO, why: GoneWhy) -> None:
        """A BO left the region."""
        for office in (self._seat, self._coming):
            if office is not None and office.known.pop(bo, None) is not None:
                self._tell(office, "removed", bo, why)

    def ask(self, request: Request) -> "Answer":
        """Which BOs may go. Use it in a `with`: what the policy's generator does at its end is judged there too."""
        return Answer(self, self._seat, request)

    def took(self) -> None:
        """The core has evicted what the last answer named."""
        self.statistics.taken += 1

    def _eject(self, seat: _Office, failure: PolicyError) -> None:
        if seat is self._coming:
            # Whoever installs it learns of it.
            seat.failure = failure
            self._coming = None
        else:
            super()._eject(seat, failure)


class Answer:
    """The usable victims of one answer, in the policy's order, as far as they are asked for."""

    def __init__(self, adviser: EvictAdviser, office: _Office | None, request: Request) -> None:
        self._adviser = adviser
        self._office = office
        self._request = request
        self._budget = Budget()
        self._yields: Any = None
        self._seen: set[BO] = set()
        self._passed: Counter[str] = Counter()
        if office is not None:
            adviser.statistics.asked += 1

    def __enter__(self) -> "Answer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> "Answer":
        return self

    def __next__(self) -> BO:
        office = self._office
        if office is None:
            raise StopIteration
        passed = self._passed.total()
        try:
            if self._yields is None:
                self._yields = office.call(self._budget, _start, office.hooks["victims"], self._request)
            bo: BO | None = office.call(self._budget, self._next_usable, office)
        except PolicyError as failure:
            self._fail(failure)
        else:
            if bo is not None:
                return bo
            if not self._seen and (victim := self._adviser.core.a_victim(self._request)) is not None:
                self._fail(
                    PolicyError("", f"it named nothing usable though {victim.name or 'a BO'} could go{self._said()}")
                )
        finally:
            self._adviser.statistics.rejected += self._passed.total() - passed
        self.close()
        raise StopIteration

    def close(self) -> None:
        """The answer is not needed any more; the policy's generator may run its `finally`."""
        office, self._office = self._office, None
        if office is None:
            return
        try:
            office.call(self._budget, self._end)
        except PolicyError as failure:
            self._adviser._eject(office, failure)
        self._adviser.statistics.answered(self._budget.wall_ns)

    def _fail(self, failure: PolicyError) -> None:
        if self._office is not None:
            self._adviser._eject(self._office, failure)
        self.close()

    def _end(self) -> None:
        """Runs within the deadline: its `finally`, and what it does when it is thrown away."""
        close = getattr(self._yields, "close", None)
        try:
            if close is not None:
                close()
        finally:
            self._yields = close = None

    def _next_usable(self, office: _Office) -> BO | None:
        """Runs within the deadline: what is passed over is the policy's time too."""
        for bo in self._yields:
            why = self._unusable(office, bo)
            if why is None:
                self._seen.add(bo)
                return bo  # type: ignore[no-any-return]
            self._passed[why] += 1
        return None

    def _unusable(self, office: _Office, bo: Any) -> str | None:
        """Why this cannot be a victim; None if it can."""
        if not isinstance(bo, BO):
            return "no BO"
        request = self._request
        # By identity: an object of the policy's own may say that it equals one of ours.
        if office.known.get(bo) is not bo:
            return "elsewhere" if bo.region else "gone"
        if bo in self._seen:
            return "named twice"
        if bo.pinned:
            return "pinned"
        if request.priority is not None and bo.priority != request.priority:
            return "of another priority"
        if bo is request.for_bo or bo in request.protected:
            return "protected"
        return None

    def _said(self) -> str:
        """What was passed over, in words."""
        return "".join(f", {count} {why}" for why, count in self._passed.items())


def _start(victims: Callable[[Request], Iterable[BO]], request: Request) -> Iterator[BO]:
    return iter(victims(request))
