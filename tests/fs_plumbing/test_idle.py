"""An idle mount sleeps: who looks at the signals of those who wait does not wake while nobody waits."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.commands import runner as runner_module
from ttmfs.fs.commands.command import Command, Machine
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.tree import trace_pipe
from ttmfs.fs.tree.trace_pipe import PipeHandle, TracePipe
from ttmfs.observe.trace import Trace
from ttmfs.svm.spaces import Svm

MIB = 1 << 20


class Steps(trio.abc.Instrument):
    """How often each task has run."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name] += 1


@pytest.fixture
def runner() -> Iterator[Runner]:
    vdev = VirtualDevice(Config(vram=MIB, gtt=MIB, memory=4 * MIB, swap=0))
    yield Runner(Machine(vdev, Namespace(vdev, uid=0, gid=0), Svm(vdev)), 60.0)
    vdev.close()


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps waits for no thread."""

    async def at_once(work: Any, *arguments: Any, **_options: Any) -> Any:
        return work(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


async def an_hour(watch: Any) -> int:
    """How often `watch` wakes in it."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, name="watch")
            await trio.sleep(3600)
            nursery.cancel_scope.cancel()
    finally:
        trio.lowlevel.remove_instrument(steps)
    return steps.of["watch"]


async def test_nobody_looks_at_signals_while_no_command_runs(
    runner: Runner, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await an_hour(runner.watch_signals) <= 2

    async def sleep(_machine: Machine, _words: list[str]) -> dict[str, Any]:
        await trio.sleep(30)
        return {}

    monkeypatch.setattr(runner_module, "_told_to_end", list)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.watch_signals)
        for _ in range(2):
            started = trio.current_time()
            command = Command("sleep", "", "", (), sleep)
            outcome = await runner.run(command, None, None, b"\n", Opening(os.getpid(), 0, 0, os.O_WRONLY))
            assert outcome.error is not None
            assert outcome.error.name == "EINTR"
            assert trio.current_time() - started < 1
            await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert await an_hour(runner.watch_signals) <= 3


async def test_nobody_looks_at_signals_while_nobody_reads_trace_pipe(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace()
    trace.start()
    pipe = TracePipe(trace)
    assert await an_hour(pipe.watch_signals) <= 2
    monkeypatch.setattr(trace_pipe, "_signaled", lambda waiting, _scan: waiting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.watch_signals)
        for _ in range(2):
            with pytest.raises(TtmError, match="was signaled"):
                await PipeHandle(pipe, os.getpid(), blocking=True).read(0, 4096)
            await trio.sleep(600)
        nursery.cancel_scope.cancel()
    assert await an_hour(pipe.watch_signals) <= 3
