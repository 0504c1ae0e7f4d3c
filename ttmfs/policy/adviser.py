"""What the three advisers have in common: a seat that may be empty, what they count, and how a policy loses it."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from ttmfs.policy.api import Kind
from ttmfs.policy.deadline import Budget
from ttmfs.policy.seat import Ejection, PolicyError, Runner, Seat, Statistics

S = TypeVar("S", bound=Seat)


class Adviser(Generic[S]):
    """One policy is in office, or none. `report` is called with each ejection, `runner` runs the policy's code."""

    kind: ClassVar[Kind]
    nobody: ClassVar[str]
    """What is done without a policy, as its name in `policies/`."""

    def __init__(self, report: Callable[[Ejection], None], runner: Runner, region: str = "") -> None:
        self.statistics = Statistics()
        self._report = report
        self._run = runner
        self._region = region
        self._instead = self.nobody
        self._seat: S | None = None

    @property
    def active(self) -> bool:
        """Is there somebody to be asked?"""
        return self._seat is not None

    @property
    def name(self) -> str:
        """The policy in office with its arguments, as it was written."""
        return self.nobody if self._seat is None else str(self._seat.spec)

    def as_dict(self) -> dict[str, Any]:
        """Its part of `policies/stats`."""
        if self._seat is None:
            return self.statistics.as_dict(self.nobody, {})
        return self.statistics.as_dict(self._seat.spec.name, self._seat.spec.args)

    def retire(self) -> None:
        """Do without a policy."""
        self._appoint(None)

    def _appoint(self, seat: S | None) -> None:
        self._seat = seat
        self.statistics.renew()

    def _tell(self, seat: S | None, hook: str, *args: Any) -> None:
        """Call a hook, if there is one; what fails is ejected."""
        if seat is None:
            return
        function = seat.hooks[hook]
        if function is not None:
            try:
                seat.call(Budget(), function, *args)
            except PolicyError as failure:
                self._eject(seat, failure)

    def _eject(self, seat: S, failure: PolicyError) -> None:
        """It is asked no more."""
        if seat is not self._seat:
            return
        self._seat = None
        ejection = Ejection(self.kind, self._region, str(seat.spec), failure.where, failure.why, self._instead)
        self.statistics.ejected += 1
        self.statistics.last_error = str(ejection)
        self._report(ejection)
