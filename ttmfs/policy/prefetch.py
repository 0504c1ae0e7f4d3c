"""The prefetch adviser: asks a policy which pages to bring in besides those that a fault names."""

from collections.abc import Callable
from typing import Any

from ttmfs.policy.adviser import Adviser
from ttmfs.policy.api import BO
from ttmfs.policy.deadline import Budget, run
from ttmfs.policy.registry import Prepared
from ttmfs.policy.seat import Ejection, PolicyError, Runner, Seat


class PrefetchAdviser(Adviser[Seat]):
    """The prefetch policy of a device. `report` is called with each ejection."""

    kind = "prefetch"
    nobody = "none"

    def __init__(self, report: Callable[[Ejection], None], runner: Runner = run) -> None:
        super().__init__(report, runner)

    def install(self, prepared: Prepared) -> None:
        """Ask this policy from now on. TtmError(EINVAL) where it cannot be made; the former one stays then."""
        seat = Seat.fill(prepared, self._run)
        try:
            seat.look_up("fault", "removed")
        except PolicyError as failure:
            raise seat.refused(str(failure)) from None
        self._appoint(seat)

    def fault(self, bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
        """Pages to bring in for a fault of `count` pages from `first` on, within the BO: (first, count).

        They need not include the fault's own, which are brought in anyway; the fault's own alone without a policy.
        """
        seat = self._seat
        function = None if seat is None else seat.hooks["fault"]
        if seat is None or function is None:
            return first, count
        self.statistics.asked += 1
        budget = Budget()
        try:
            answer = seat.call(budget, _ask, function, bo, first, count, why)
        except PolicyError as failure:
            self._eject(seat, failure)
            return first, count
        self.statistics.answered(budget.wall_ns)
        wanted, end = max(0, answer[0]), min(bo.pages, answer[0] + answer[1])
        if end <= wanted:
            # Nothing of it is in the BO.
            self.statistics.rejected += 1
            return first, count
        self.statistics.taken += (wanted, end - wanted) != (first, count)
        return wanted, end - wanted

    def removed(self, bo: BO, first: int, count: int) -> None:
        """Pages of a BO are not there any more."""
        self._tell(self._seat, "removed", bo, first, count)


def _ask(fault: Callable[..., Any], bo: BO, first: int, count: int, why: str) -> tuple[int, int]:
    """Runs within the deadline. ValueError for an answer that is none."""
    answer = fault(bo, first, count, why)
    if type(answer) is tuple and len(answer) == 2 and type(answer[0]) is int and type(answer[1]) is int:
        return answer
    raise ValueError("fault() must return two whole numbers: (first, count), in pages")
