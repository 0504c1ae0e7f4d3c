"""What fails in the chaos of a mount, and when: one place now and then, all of them at a rate, or each pair in turn."""

import itertools
import random
import time
from collections.abc import Callable

from tests.mount.chaos_run import Run
from ttmfs.observe.inject import PLACES

NOW_AND_THEN = "now-and-then"
PAIRS = tuple(itertools.combinations(PLACES, 2))


class Failures:
    """`how` is `now-and-then`, `all:PERCENT`, or `pairs:PERCENT[:FIRST-LAST]` of PAIRS. ValueError for what is not."""

    def __init__(self, how: str, seed: int) -> None:
        self._rng = random.Random(f"failures {seed}")
        word, *rest = how.split(":")
        plans = {NOW_AND_THEN: self._now_and_then, "all": self._all, "pairs": self._pairs}
        if word not in plans or not (word == NOW_AND_THEN) == (not rest):
            raise ValueError(f"--failures {how}: say {NOW_AND_THEN}, all:PERCENT or pairs:PERCENT[:FIRST-LAST]")
        self._plan: Callable[[Run, float], None] = plans[word]
        self._percent = int(rest[0]) if rest else 0
        first, _, last = rest[1].partition("-") if len(rest) > 1 else ("0", "", str(len(PAIRS) - 1))
        self._some = PAIRS[int(first) : int(last or first) + 1]

    def act(self, run: Run) -> None:
        """Until the run is over but for its last 5 seconds: then everything is compared, through mappings too."""
        self._client = run.client()
        end = time.monotonic() + run.seconds - 5
        try:
            self._plan(run, end)
        finally:
            for place in PLACES:
                self._put(place, 0)

    def _put(self, place: str, percent: int, times: int = -1) -> None:
        for key, value in (("times", times), ("probability", percent)):
            self._client.do(f"command('debug/fail_{place}/{key}', '{value}')")

    def _now_and_then(self, run: Run, end: float) -> None:
        while run.going_on() and time.monotonic() < end:
            place = self._rng.choice(PLACES)
            self._put(place, self._rng.choice((20, 100)), self._rng.choice((1, 2, 5)))
            run.count("failures set")
            run.sleep(self._rng.random() * 0.1)
            self._put(place, 0)

    def _all(self, run: Run, end: float) -> None:
        for place in PLACES:
            self._put(place, self._percent)
        run.count("failures set", len(PLACES))
        while run.going_on() and time.monotonic() < end:
            run.sleep(0.2)

    def _pairs(self, run: Run, end: float) -> None:
        for number, pair in enumerate(self._some):
            if not run.going_on():
                return
            for place in pair:
                self._put(place, self._percent)
            run.count("failures set")
            run.sleep(max(0.0, end - time.monotonic()) / (len(self._some) - number))
            for place in pair:
                self._put(place, 0)
