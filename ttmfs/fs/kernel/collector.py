"""Collector: the interpreter's collector of garbage, kept from stopping the loop for long.

A full collection looks at every container there is: a hundred milliseconds with 20,000 BOs, in which nobody is served.
What lives long here (a BO and what it has, names, inodes) makes no circles: it ends with its last reference, whoever
collects or not (tests/fs_plumbing/test_collector.py). So what has outlived one full collection is set aside
(`gc.freeze`), and the next looks at what came since. Once there is little, all of it is looked at again, for circles
that ended after they were set aside.
"""

import gc
from collections.abc import Callable
from typing import Any, Final

import trio

_ROUNDS: Final = 2
"""Collections of the middle generation from one full collection to the next, at least: some 20,000 containers."""
_OLDEST: Final = 2
FEW: Final = 2000
"""Inodes and BOs whose containers are looked at in a few milliseconds."""
_INTERVAL: Final = 60.0
"""Seconds from one look whether there are so few to the next."""


class Collector:
    """Of one daemon; `load` is how many inodes and BOs there are."""

    def __init__(self, load: Callable[[], int]) -> None:
        self._load = load
        self._thresholds = gc.get_threshold()
        self._set_aside = False
        """Something, since all was looked at."""

    def start(self) -> None:
        """Modules and tables live as long as the daemon: from now on no collection looks at them."""
        gc.set_threshold(*self._thresholds[:2], _ROUNDS)
        gc.freeze()
        gc.callbacks.append(self._collected)
        self._collect_little()

    def stop(self) -> None:
        """As the interpreter has it."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    def look_at_all(self) -> None:
        """A collection of everything; what is no garbage is set aside."""
        gc.unfreeze()
        gc.collect()
        self._collect_little()

    def _collect_little(self) -> None:
        """The interpreter's next waits for a quarter of what the last has left: now that is next to nothing."""
        gc.collect()
        self._set_aside = False

    async def run(self) -> None:
        """Background: from time to time, if there is little, all of it."""
        while True:
            await trio.sleep(_INTERVAL)
            if self._set_aside and self._load() <= FEW:
                self.look_at_all()

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "stop" and info["generation"] == _OLDEST:
            gc.freeze()
            self._set_aside = True
