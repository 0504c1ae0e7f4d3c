"""A region that is only counted: what the adviser asks of the core, in a few lines, with rules of its own to check."""

from collections import OrderedDict
from collections.abc import Iterator

from ttmfs.policy import BO, PlainBO, Region, Request
from ttmfs.policy.api import GoneWhy
from ttmfs.policy.deadline import run, run_unwatched
from ttmfs.policy.evict import EvictAdviser
from ttmfs.policy.parameters import Spec, parse_spec
from ttmfs.policy.registry import Prepared, entry_of, prepare
from ttmfs.policy.seat import Ejection
from ttmfs.units import pages_of


def prepared(words: str | type) -> Prepared:
    """A policy as one writes it, or a class."""
    if isinstance(words, str):
        return prepare(parse_spec("evict", words.split()))
    name = words.__name__.lower()
    return Prepared(Spec("evict", name), entry_of("evict", name, words))


class ModelRegion:
    """BOs in LRU order, an adviser, and what was evicted, by name."""

    def __init__(self, size: int, *, watched: bool = False) -> None:
        self.region = Region("vram", size)
        self.order: OrderedDict[BO, None] = OrderedDict()
        self.evicted: list[str] = []
        self.ejections: list[Ejection] = []
        self.locked: set[BO] = set()
        self.clock = 0
        self.adviser = EvictAdviser(self, self.ejections.append, run if watched else run_unwatched)

    # -- what the adviser asks ------------------------------------------------------------------------------------

    def residents(self) -> Iterator[BO]:
        """Follows the list: after each part, what is new at its end."""
        told: dict[BO, None] = {}
        while part := [bo for bo in self.order if bo not in told]:
            for bo in part:
                told[bo] = None
                if bo in self.order:
                    yield bo

    def a_victim(self, request: Request) -> BO | None:
        return next((bo for bo in self.order if self.usable(bo, request)), None)

    def usable(self, bo: BO, request: Request) -> bool:
        level = request.priority is None or bo.priority == request.priority
        return level and not bo.pinned and bo is not request.for_bo and bo not in request.protected

    # -- what the core does ---------------------------------------------------------------------------------------

    def install(self, words: str | type) -> None:
        """By name, or a class."""
        for _ in self.adviser.install(prepared(words)):
            pass

    @property
    def held(self) -> int:
        return sum(bo.size for bo in self.order)

    def use(self, bo: PlainBO, protected: tuple[BO, ...] = ()) -> bool:
        """A use of a BO, which brings it in if it is not there; False when there is no room for it."""
        self.clock += 1
        bo._uses += 1
        bo._last_use = self.clock
        if bo in self.order:
            self.order.move_to_end(bo)
            self.adviser.used(bo, "job")
            return True
        while self.held + bo.size > self.region.size:
            if not self.make_room(Request(pages_of(bo.size), bo, priority=bo.priority, protected=protected)):
                return False
        self.order[bo] = None
        bo._region = self.region.name
        self.adviser.added(bo)
        return True

    def make_room(self, request: Request) -> bool:
        """Evict one: the first that the policy names and that is not locked, else the first of the own list."""
        with self.adviser.ask(request) as answer:
            bo: BO | None = None
            for named in answer:
                assert named in self.order
                assert self.usable(named, request)
                if named not in self.locked:
                    self.adviser.took()
                    bo = named
                    break
            else:
                bo = next((bo for bo in self.order if self.usable(bo, request) and bo not in self.locked), None)
        if bo is None:
            return False
        self.leave(bo, "evicted")
        self.evicted.append(bo.name)
        return True

    def leave(self, bo: BO, why: GoneWhy) -> None:
        """Out of the region."""
        del self.order[bo]
        assert isinstance(bo, PlainBO)
        bo._region = ""
        self.adviser.removed(bo, why)
