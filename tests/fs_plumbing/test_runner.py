"""The runner of command files: long writes let others in, crowds are turned away, results are kept within bounds."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.turns import Turns, ticking_clock
from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.jobs import Job
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.commands import results, runner
from ttmfs.fs.commands.command import Command, Machine
from ttmfs.fs.commands.handles import CommandHandle, CommandOutcome
from ttmfs.fs.commands.jobs import parse_job
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.opening import Opening
from ttmfs.svm.spaces import Svm

MIB = 1 << 20
OWNER, A, B = 1000, 2000, 3000


@pytest.fixture
def machine() -> Iterator[Machine]:
    vdev = VirtualDevice(Config(vram=MIB, gtt=MIB, memory=4 * MIB, swap=0))
    yield Machine(vdev, Namespace(vdev, uid=OWNER, gid=OWNER), Svm(vdev))
    vdev.close()


@pytest.fixture
def ticking() -> Iterator[None]:
    with ticking_clock(200):
        yield


def opening(uid: int = A, flags: int = os.O_RDWR) -> Opening:
    return Opening(0, uid, uid, flags)


def command(run: Any) -> Command:
    return Command("work", "", "", (), run)


@pytest.mark.parametrize("writers", [1, 60])
async def test_any_number_of_lines_lets_others_in_between(machine: Machine, ticking: None, writers: int) -> None:
    count = 65536 if writers == 1 else 1000
    run_lines = 0

    async def line(_machine: Machine, words: list[str]) -> dict[str, Any]:
        nonlocal run_lines
        run_lines += 1
        turns.note("line")
        return {}

    done: list[int] = []

    async def write() -> None:
        outcome = await made.run(command(line), None, None, b"\n" * count, opening())
        assert outcome.error is None
        texts = outcome.text.splitlines()
        assert len(texts) == count
        assert json.loads(texts[-1]) == {"ok": True, "line": count}
        done.append(1)

    made = Runner(machine, 60.0, OWNER)
    with Turns() as turns:
        async with trio.open_nursery() as nursery:
            for _ in range(writers):
                nursery.start_soon(write)
    assert len(done) == writers
    assert run_lines == count * writers
    assert turns.most("line") <= 8


async def test_a_crowd_of_commands_is_turned_away_and_the_others_are_not(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_COMMANDS_OF_A_USER", 5)
    monkeypatch.setattr(runner, "MAX_COMMANDS", 20)
    go_on = trio.Event()
    ended: list[str] = []

    async def wait(_machine: Machine, words: list[str]) -> dict[str, Any]:
        await go_on.wait()
        return {}

    made = Runner(machine, 60.0, OWNER)

    async def write(uid: int) -> None:
        outcome = await made.run(command(wait), None, None, b"\n", opening(uid))
        ended.append("ok" if outcome.error is None else outcome.error.name)

    async with trio.open_nursery() as nursery:
        for uid, count in ((A, 7), (B, 3), (OWNER, 6), (0, 6), (B, 2)):
            for _ in range(count):
                nursery.start_soon(write, uid)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
        assert ended == ["EAGAIN"] * 4, "two of A's are too many, and the last of B's beyond all that may be"
        go_on.set()
    assert ended.count("ok") == 20
    ended.clear()
    await write(A)
    assert ended == ["ok"], "room again"


async def test_results_beyond_the_bound_end_the_write(machine: Machine) -> None:
    async def line(_machine: Machine, words: list[str]) -> dict[str, Any]:
        return {"data": "00" * MIB}

    outcome = await Runner(machine, 60.0, OWNER).run(command(line), None, None, b"\n" * 1000, opening())
    assert outcome.error is not None
    assert outcome.error.errno == errno.E2BIG
    assert outcome.size < 20 * MIB
    assert json.loads(outcome.text.splitlines()[-1])["errno"] == "E2BIG"


async def test_a_long_quoted_line_is_split_off_the_loop(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = runner.split_words  # type: ignore[attr-defined]

    def split(line: str) -> list[str]:
        threads.append(threading.get_ident())
        return real(line)

    monkeypatch.setattr(runner, "split_words", split)
    seen: list[int] = []

    async def line(_machine: Machine, words: list[str]) -> dict[str, Any]:
        seen.append(len(words))
        return {}

    made = Runner(machine, 60.0, OWNER)
    await made.run(command(line), None, None, b"'" + b"a " * 5000 + b"'", opening())
    await made.run(command(line), None, None, b"a " * 5000, opening())
    assert seen == [1, 5000]
    assert threads[0] != threading.get_ident(), "character by character"
    assert threads[1] == threading.get_ident()


class Keeper:
    def __init__(self) -> None:
        self.given_up = False

    def give_up(self) -> None:
        self.given_up = True


def test_of_each_users_results_the_latest_are_kept() -> None:
    kept = results.KeptResults()
    keepers = [Keeper() for _ in range(10)]
    other = Keeper()
    kept.keep(B, other, results.LIMIT)
    for keeper in keepers:
        kept.keep(A, keeper, results.LIMIT // 4)
    assert [keeper.given_up for keeper in keepers] == [True] * 6 + [False] * 4
    kept.drop(A, keepers[9])
    kept.keep(A, keepers[6], 1)  # written anew: smaller, and the latest
    kept.keep(A, keepers[0], results.LIMIT // 4)
    assert [keeper.given_up for keeper in keepers[6:]] == [False] * 4
    kept.keep(A, keepers[1], results.LIMIT)
    assert [keeper.given_up for keeper in keepers[6:9]] == [True] * 3
    assert not other.given_up, "nobody's results go for another's"
    for keeper in keepers:
        kept.drop(A, keeper)
    kept.drop(B, other)
    assert not kept._users


async def test_a_handle_says_that_its_result_was_given_up(machine: Machine) -> None:
    async def line(_machine: Machine, words: list[str]) -> dict[str, Any]:
        return {"data": "0" * (9 * MIB)}

    made = Runner(machine, 60.0, OWNER)

    def handle(flags: int = os.O_RDWR) -> CommandHandle:
        opened = opening(flags=flags)

        async def run(data: bytes) -> CommandOutcome:
            return await made.run(command(line), None, None, data, opened)

        return CommandHandle(lambda: "", run, opened, made.results)

    first, second, writer = handle(), handle(), handle(os.O_WRONLY)
    await first.write(0, b"\n")
    assert (await first.read(1, 10)).startswith(b'{"ok": tru')
    await writer.write(0, b"\n")
    assert (await first.read(1, 10)).startswith(b'{"ok": tru'), "what nobody can read takes no room"
    await second.write(0, b"\n")
    with pytest.raises(TtmError) as caught:
        await first.read(1, 10)
    assert caught.value.errno == errno.ENOBUFS
    await first.write(0, b"\n")
    assert (await first.read(1, 10)).startswith(b'{"ok": tru')
    first.close()
    second.close()
    assert not made.results._users


def test_who_does_not_own_the_device_has_queues_and_turns_of_his_own(machine: Machine) -> None:
    machine.vdev.ttm.accounts.exempt |= {OWNER}
    machine.names.create(machine.names.root, b"a", 0o666, A, A)

    def job(uid: int, words: str) -> Job:
        return parse_job(replace(machine, caller=opening(uid)), words.split())

    for uid, queue in ((0, "default"), (OWNER, "default"), (A, f"default.{A}")):
        assert job(uid, "busy seconds=10 bo=a").queue == queue
        assert job(uid, "busy seconds=10 bo=a queue=default").queue == queue
        assert job(uid, "busy seconds=10 bo=a queue=render").queue == "render"
    assert job(OWNER, "busy seconds=3600 bo=a").seconds == 3600
    with pytest.raises(TtmError, match="say 0 to 10"):
        job(A, "busy seconds=11 bo=a")
