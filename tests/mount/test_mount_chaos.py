"""Everything at once on one mount, for a moment: see chaos.py, which runs it for as long as one likes."""

import random
from collections import Counter

import pytest

from tests.mount import chaos
from tests.mount.chaos_failures import NOW_AND_THEN, PAIRS

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]


RUNS = 10
"""So often at most: a run on a busy machine gets less done."""


def _run(case: str, seconds: float, failures: str = "") -> None:
    """Again and again until it has met what it is to meet."""
    wanted = {"commands": 11, "statistics rounds": 1, "failures set" if failures else "svm rounds": 1}
    counts: Counter[str] = Counter()
    for _ in range(RUNS):
        seed = random.SystemRandom().randrange(1 << 32)
        with chaos.run(case, seed, seconds, failures) as run:
            assert not run.findings, "\n".join((chaos.again(case, seed, failures), *run.findings))
            counts.update(run.counts)
        if all(counts[what] >= times for what, times in wanted.items()):
            return
    pytest.fail(f"{RUNS} runs of {seconds} s have not met {wanted}: {counts}")


@pytest.mark.parametrize("failures", ["", NOW_AND_THEN])
def test_nothing_is_found(failures: str) -> None:
    _run("zstd" if failures else "shmem", 7 if failures else 4, failures)


@pytest.mark.stress
@pytest.mark.parametrize("failures", ["", NOW_AND_THEN, "all:2"])
@pytest.mark.parametrize("case", chaos.CASES)
def test_nothing_is_found_for_long(case: str, failures: str) -> None:
    _run(case, 60, failures)


@pytest.mark.stress
@pytest.mark.parametrize("part", range(4))
def test_nothing_is_found_while_two_places_fail(part: int) -> None:
    """Each pair for three seconds."""
    each = -(-len(PAIRS) // 4)
    _run("shmem", 3 * each, f"pairs:10:{part * each}-{(part + 1) * each - 1}")
