"""No command outlives its bound, no request the fault timeout, whatever fails and whatever stands still.

See bounds.py for the tight spots. The default suite takes some of each, `--all` every one.
"""

import pytest
import trio

from tests.core.bounds import BOUND, CASES, FAULT, SPOTS, TARGETS, Case, Scene, Spot, scene
from tests.core.harness import MIB
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.spaces import SPACE_COMMANDS

GRACE = 1.0
"""Seconds for putting back what was half done."""
FOREVER = 10_000.0
SHARE = 48
"""One in so many cases is in the short form."""


def test_every_command_is_in_the_table() -> None:
    tables = {"objects": OBJECT_COMMANDS, "ctl": CTL_COMMANDS, "svm": SPACE_COMMANDS}
    every = {(kind, name) for kind, table in tables.items() for name in table} - {("ctl", "import")}
    assert {(case.kind, case.name) for case in CASES} == every


@pytest.mark.parametrize("case", [case for case in CASES if case.kind == "svm"], ids=str)
async def test_what_is_in_the_table_works_where_it_is_calm(case: Case, autojump_clock: object) -> None:
    async with scene(Spot()) as here:
        assert (await here.run(case))[0] == "ok"
        await here.settle(case)


async def _ends_in_time(spot: Spot, case: Case) -> None:
    async with scene(spot) as here:
        with trio.move_on_after(FOREVER):
            result, seconds = await here.run(case)
            assert seconds <= BOUND + GRACE, f"{spot}: {case} took {seconds:g} s and ended with {result}"
            await here.settle(case)
            return
        raise AssertionError(f"{spot}: {case} never ended")


def _some(spot: Spot) -> list[Case]:
    """Other commands for each spot, and all commands over all spots."""
    first = 7 * SPOTS.index(spot) % SHARE
    return CASES[first::SHARE]


@pytest.mark.parametrize("spot", SPOTS, ids=str)
async def test_a_command_ends_within_its_bound(spot: Spot, autojump_clock: object) -> None:
    for case in _some(spot):
        await _ends_in_time(spot, case)


@pytest.mark.stress
@pytest.mark.parametrize("spot", SPOTS, ids=str)
async def test_every_command_ends_within_its_bound(spot: Spot, autojump_clock: object) -> None:
    for case in CASES:
        await _ends_in_time(spot, case)


@pytest.mark.parametrize("spot", SPOTS, ids=str)
async def test_a_request_ends_within_the_fault_timeout(spot: Spot, autojump_clock: object) -> None:
    async with scene(spot) as here, trio.open_nursery() as nursery:
        for name in TARGETS:
            for kind in ("read", "write"):
                for offset in (0, MIB // 2 if name != "cached" else 0):
                    nursery.start_soon(_request_ends_in_time, here, spot, name, kind, offset)


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("spot", SPOTS, ids=str)
async def test_a_first_touch_ends_within_it(spot: Spot, kind: str, autojump_clock: object) -> None:
    """What it has to evict moves slowly, or not at all."""
    async with scene(spot) as here:
        await _request_ends_in_time(here, spot, "fresh", kind, 0)


async def _request_ends_in_time(here: Scene, spot: Spot, name: str, kind: str, offset: int) -> None:
    result, seconds = await here.request(name, kind, offset)
    assert seconds <= FAULT + GRACE, f"{spot}: {kind} of {name}+{offset} took {seconds:g} s and ended with {result}"
