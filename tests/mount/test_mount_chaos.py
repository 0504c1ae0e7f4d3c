"""Everything at once on one mount, for a moment: see chaos.py, which runs it for as long as one likes."""

import random
from collections import Counter

import pytest

from tests.mount import chaos

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]


RUNS = 10
"""So often at most: a run on a busy machine gets less done."""


def _run(case: str, seconds: float, *, inject: bool) -> None:
    """Again and again until it has met what it is to meet."""
    wanted = {"commands": 11, "statistics rounds": 1, "failures set" if inject else "svm rounds": 1}
    counts: Counter[str] = Counter()
    for _ in range(RUNS):
        seed = random.SystemRandom().randrange(1 << 32)
        with chaos.run(case, seed, seconds, inject=inject) as run:
            assert not run.findings, "\n".join((f"--seed {seed} --case {case}", *run.findings))
            counts.update(run.counts)
        if all(counts[what] >= times for what, times in wanted.items()):
            return
    pytest.fail(f"{RUNS} runs of {seconds} s have not met {wanted}: {counts}")


@pytest.mark.parametrize("inject", [False, True], ids=["", "failures"])
def test_nothing_is_found(inject: bool) -> None:
    _run("zstd" if inject else "shmem", 7 if inject else 4, inject=inject)


@pytest.mark.stress
@pytest.mark.parametrize("inject", [False, True], ids=["", "failures"])
@pytest.mark.parametrize("case", chaos.CASES)
def test_nothing_is_found_for_long(case: str, inject: bool) -> None:
    _run(case, 60, inject=inject)
