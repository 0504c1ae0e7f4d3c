"""Everything at once on one mount, for a moment: see chaos.py, which runs it for as long as one likes."""

import random

import pytest

from tests.mount import chaos

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]


def _run(case: str, seconds: float, *, inject: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    with chaos.run(case, seed, seconds, inject=inject) as run:
        assert not run.findings, "\n".join((f"--seed {seed} --case {case}", *run.findings))
        assert run.counts["commands"] > 10
        assert run.counts["statistics rounds"] > 0
        assert run.counts["failures set" if inject else "svm rounds"] > 0


@pytest.mark.parametrize("inject", [False, True], ids=["", "failures"])
def test_nothing_is_found(inject: bool) -> None:
    _run("zstd" if inject else "shmem", 8, inject=inject)


@pytest.mark.stress
@pytest.mark.parametrize("inject", [False, True], ids=["", "failures"])
@pytest.mark.parametrize("case", chaos.CASES)
def test_nothing_is_found_for_long(case: str, inject: bool) -> None:
    _run(case, 60, inject=inject)
