"""A seat: one policy in office, the only way into its code, and what is known of how it does.

Every call of a policy goes through `Seat.call`, which judges it: what raises (a MemoryError too), or takes too long, is
a `PolicyError` with the place in the policy's code and the reason. The adviser that owns the seat ejects it then.
"""

import errno
import os
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ttmfs.errors import TtmError
from ttmfs.policy.api import BASES, Kind, Policy
from ttmfs.policy.deadline import Budget, Overrun, run_unwatched
from ttmfs.policy.parameters import Spec
from ttmfs.policy.registry import Prepared

MAX_TEXT: Final = 200
"""Characters of a policy's own message that are passed on."""


class Runner(Protocol):
    """Runs foreign code and charges what it takes: `deadline.run`, or `deadline.run_unwatched` where nobody waits."""

    def __call__(self, budget: Budget, function: Callable[..., Any], /, *args: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Ejection:
    """A policy that is no longer asked: who, for what, where it failed ("" where the answer itself was bad) and why."""

    kind: Kind
    region: str
    policy: str
    where: str
    why: str
    instead: str
    """What is done without it."""

    def __str__(self) -> str:
        of = f" of {self.region}" if self.region else ""
        at = f" at {self.where}" if self.where else ""
        return f"{self.kind} policy{of} {self.policy} is ejected: {self.why}{at}; {self.instead} is back"


class PolicyError(Exception):
    """A policy has failed: `where` in its code, `why`."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{why} at {where}" if where else why)
        self.where = where
        self.why = why


class Statistics:
    """What `policies/stats` shows of a policy: answers asked for, taken by the core, passed over; times of answers."""

    __slots__ = ("answers", "asked", "ejected", "last_error", "max_ns", "rejected", "sum_ns", "taken")

    def __init__(self) -> None:
        self.asked = self.taken = self.rejected = self.ejected = 0
        self.last_error = ""
        self.answers = self.sum_ns = self.max_ns = 0

    def answered(self, nanoseconds: int) -> None:
        """An answer is complete, and took so long."""
        self.answers += 1
        self.sum_ns += nanoseconds
        self.max_ns = max(self.max_ns, nanoseconds)

    def renew(self) -> None:
        """Another policy is asked from now on. What was ejected before stays known."""
        self.asked = self.taken = self.rejected = 0
        self.answers = self.sum_ns = self.max_ns = 0

    def as_dict(self, name: str, args: Mapping[str, str]) -> dict[str, Any]:
        """The keys of `policies/stats`; times in microseconds."""
        return {
            "name": name,
            "args": dict(args),
            "asked": self.asked,
            "taken": self.taken,
            "rejected": self.rejected,
            "ejected": self.ejected,
            "last_error": self.last_error,
            "us_mean": round(self.sum_ns / self.answers / 1e3, 1) if self.answers else 0.0,
            "us_max": round(self.max_ns / 1e3, 1),
        }


class Seat:
    """A policy in office."""

    __slots__ = ("hooks", "policy", "run", "spec")

    def __init__(self, spec: Spec, policy: Policy, runner: Runner) -> None:
        self.spec = spec
        self.policy = policy
        self.run = runner
        self.hooks: dict[str, Callable[..., Any] | None] = {}
        """Its methods, by name; None where it has only what the base class has."""

    @classmethod
    def fill(cls, prepared: Prepared, runner: Runner) -> Self:
        """Make the policy. TtmError(EINVAL) says what is wrong with the file, the class or its arguments."""
        # All of it is one answer.
        budget = Budget()

        def call(function: Callable[..., Any], *args: Any) -> Any:
            return _judged(runner, budget, function, *args, through=TtmError)

        try:
            return cls(prepared.spec, prepared.make(call), runner)
        except PolicyError as failure:
            raise TtmError(errno.EINVAL, f"{prepared.spec}: {failure}") from None

    def refused(self, why: str) -> TtmError:
        """It cannot be installed."""
        return TtmError(errno.EINVAL, f"{self.spec}: {why}")

    def look_up(self, *names: str) -> None:
        """Find these of its methods. PolicyError."""
        self.hooks = self.call(Budget(), _hooks, self.policy, BASES[self.spec.kind], names)

    def call(self, budget: Budget, function: Callable[..., Any], /, *args: Any) -> Any:
        """Run code of the policy. PolicyError for whatever it raises and when the budget is used up."""
        return _judged(self.run, budget, function, *args)


def _hooks(policy: Policy, base: type, names: tuple[str, ...]) -> dict[str, Callable[..., Any] | None]:
    own = [name for name in names if getattr(type(policy), name, None) is not getattr(base, name)]
    return {name: getattr(policy, name) if name in own else None for name in names}


def _judged(
    runner: Runner,
    budget: Budget,
    function: Callable[..., Any],
    /,
    *args: Any,
    through: type[BaseException] | tuple[()] = (),
) -> Any:
    """Run foreign code; PolicyError for whatever it raises, except what goes `through`."""
    try:
        return runner(budget, function, *args)
    except through:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and runner is run_unwatched:
            # No daemon: somebody sits in front of it and wants it to end.
            raise
        # Nothing of the policy's may outlive this: its exception holds frames, and these what it has allocated.
        failure = PolicyError(_where(error.__traceback__), _why(error, runner))
    raise failure


def failed(error: Exception) -> str:
    """What went wrong in code of a policy and where, in words: for who runs it without a seat."""
    return str(PolicyError(_where(error.__traceback__), _why(error, run_unwatched)))


def _where(trace: TracebackType | None) -> str:
    """`FILE:LINE in FUNCTION` of the last frame that is not the machinery's around policies."""
    found = ""
    for frame, line in traceback.walk_tb(trace):
        code = frame.f_code
        if not code.co_filename.startswith(_MACHINERY) or code.co_filename.startswith(_SHIPPED):
            found = f"{code.co_filename}:{line} in {code.co_name}"
    return found


def _why(error: BaseException, runner: Runner) -> str:
    """The reason in words. They are foreign, so they are asked for within a deadline too."""
    if isinstance(error, Overrun):
        return str(error)
    name = type(error).__name__
    try:
        text = " ".join(str(runner(Budget(), str, error)).split())[:MAX_TEXT]
    except BaseException:
        return f"raised {name}"
    return f"raised {name}: {text}" if text else f"raised {name}"


_MACHINERY: Final = os.path.dirname(os.path.dirname(__file__)) + os.sep
_SHIPPED: Final = os.path.join(os.path.dirname(__file__), "shipped", "")
