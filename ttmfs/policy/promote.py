"""The promotion adviser: asks a policy which BOs that lie lower than wanted shall come home, within a budget.

It remembers who is displaced and where home is, checks what the policy says against that, and lets no more bytes come
home than the policy's own `rate` has saved since the last time, at most those of one second.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from ttmfs.policy.adviser import Adviser
from ttmfs.policy.api import BO, Promote
from ttmfs.policy.deadline import Budget, run
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection, PolicyError, Runner, Seat

UNLIMITED: Final = 1 << 62
"""Bytes, where the rate has no limit."""


class PromoteAdviser(Adviser[Seat]):
    """The promotion policy of a device. `report` is called with each ejection."""

    kind = "promote"
    nobody = "none"

    def __init__(self, report: Callable[[Ejection], None], runner: Runner = run) -> None:
        super().__init__(report, runner)
        self._homes: dict[BO, tuple[BO, str]] = {}
        """Displaced BOs and where they belong, the first displaced first."""
        self._rate = 0
        self._saved = 0.0
        self._last: float | None = None

    @property
    def displaced_bos(self) -> Collection[BO]:
        """Who is not at home, whether there is a policy or not."""
        return self._homes.keys()

    def home_of(self, bo: BO) -> str:
        """Where a BO that is displaced belongs; "" of one that is not."""
        return self._homes.get(bo, (bo, ""))[1]

    def install(self, prepared: Prepared) -> None:
        """Ask this policy from now on; it is told who is displaced. TtmError(EINVAL) where it cannot be made."""
        seat = Seat.fill(prepared, self._run)
        try:
            seat.look_up("displaced", "settled", "submitted", "tick")
            rate = seat.call(Budget(), _rate, seat.policy)
            if (displaced := seat.hooks["displaced"]) is not None:
                for bo, home in self._homes.values():
                    seat.call(Budget(), displaced, bo, home)
        except PolicyError as failure:
            raise seat.refused(str(failure)) from None
        self._rate, self._saved, self._last = rate, 0.0, None
        self._appoint(seat)

    def displaced(self, bo: BO, home: str) -> None:
        """The BO lies lower than `home`, where it belongs."""
        self._homes[bo] = bo, home
        self._tell(self._seat, "displaced", bo, home)

    def settled(self, bo: BO) -> None:
        """It is at home, belongs elsewhere, or is gone."""
        if self._homes.pop(bo, None) is not None:
            self._tell(self._seat, "settled", bo)

    def submitted(self, bos: Collection[BO], now: float) -> list[tuple[BO, str]]:
        """A job on these BOs was submitted: who comes home now. `now` is in seconds, on the device's clock."""
        return self._ask("submitted", now, lambda _budget: bos)

    def tick(self, now: float) -> list[tuple[BO, str]]:
        """Time has passed: who comes home now."""
        return self._ask("tick", now, lambda budget: budget)

    def spent(self, size: int) -> None:
        """A BO of so many bytes has come home."""
        self.statistics.taken += 1
        self._saved -= size

    def _ask(self, hook: str, now: float, argument: Callable[[int], Any]) -> list[tuple[BO, str]]:
        if self._last is not None:
            self._saved = min(self._saved + self._rate * max(0.0, now - self._last), float(self._rate))
        self._last = now
        seat = self._seat
        function = None if seat is None else seat.hooks[hook]
        if seat is None or function is None or not self._homes:
            return []
        allowed = UNLIMITED if not self._rate else int(self._saved)
        if allowed <= 0:
            return []
        self.statistics.asked += 1
        budget = Budget()
        try:
            found: list[tuple[BO, str]] = seat.call(budget, self._chosen, function, argument(allowed), allowed)
        except PolicyError as failure:
            self._eject(seat, failure)
            return []
        self.statistics.answered(budget.wall_ns)
        return found

    def _chosen(self, function: Callable[..., Iterable[Any]], argument: Any, allowed: int) -> list[tuple[BO, str]]:
        """Runs within the deadline: what the policy names, as far as it is displaced, belongs there and is allowed.

        What is larger than a whole second's bytes comes home when a second's worth is saved, else it never could.
        """
        found: dict[BO, str] = {}
        for named, region in function(argument):
            bo, home = self._homes.get(named, (named, ""))
            if home != region or bo in found or bo.pinned or not self._fits(bo.size, allowed, first=not found):
                self.statistics.rejected += 1
                continue
            found[bo] = home
            allowed -= bo.size
            if allowed <= 0:
                break
        return list(found.items())

    def _fits(self, size: int, allowed: int, *, first: bool) -> bool:
        return size <= allowed or (first and allowed >= self._rate)


def _rate(policy: Promote) -> int:
    """Runs within the deadline. ValueError."""
    rate = policy.rate
    if type(rate) is int and rate >= 0:
        return rate
    raise ValueError("rate must be a whole number of bytes a second, or 0")
