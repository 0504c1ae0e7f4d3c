"""Runner: executes the lines of one write into a command file, bounded and interruptible.

A waiting command ends with EINTR when its opener has a signal pending that says so (ttmfs.fs.signals), with ETIME after
`command_timeout`, with ESHUTDOWN at shutdown.
"""

import errno
import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.command import Command, Machine, Target, run_line
from ttmfs.fs.nodes import CommandOutcome
from ttmfs.fs.signals import Opener
from ttmfs.fs.words import MAX_WRITE, cell, readable, split_words

log = logging.getLogger(__name__)

SIGNAL_INTERVAL: Final = 0.05
"""Seconds between two looks at the signals of those who wait, if looking takes no longer than a tenth of that."""
_ERROR_LOG_LINES: Final = 256


class ErrorLog:
    """The last failed commands and faults, with why."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=_ERROR_LOG_LINES)

    def add(self, what: str, error: OSError) -> None:
        """One line."""
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        self._lines.append("\t".join((time.strftime("%Y-%m-%dT%H:%M:%S"), name, cell(what), cell(str(error.strerror)))))

    @contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Add what fails within, and let it go on."""
        try:
            yield
        except OSError as error:
            self.add(what, error)
            raise

    def text(self) -> str:
        """All lines, oldest first: time, errno, what, why, tab-separated."""
        return "".join(line + "\n" for line in self._lines)


class _Running:
    """A command that is under way."""

    __slots__ = ("opener", "reason", "scope")

    def __init__(self, opener: Opener, scope: trio.CancelScope) -> None:
        self.opener = opener
        self.scope = scope
        self.reason: TtmError | None = None

    def stop(self, reason: TtmError) -> None:
        """End it at its next wait."""
        self.reason = self.reason or reason
        self.scope.cancel()


class Runner:
    """Runs commands for one mount."""

    def __init__(self, machine: Machine, timeout: float) -> None:
        self.machine = machine
        self.timeout = timeout
        self.error_log = ErrorLog()
        self._running: set[_Running] = set()
        self._closing = False

    async def run(
        self, command: Command, name: str | None, target: Target | None, data: bytes, pid: int
    ) -> CommandOutcome:
        """Run every line of `data` in order, stopping at the first failure. Never raises.

        When it returns, nobody is shown attributes of before.
        """
        outcome = await self._run(command, name, target, data, pid)
        await self.machine.names.root.cache.settle()
        return outcome

    async def _run(
        self, command: Command, name: str | None, target: Target | None, data: bytes, pid: int
    ) -> CommandOutcome:
        outcome = CommandOutcome()
        where = command.name if name is None else f"{name} {command.name}"
        if len(data) > MAX_WRITE:
            too_big = TtmError(errno.E2BIG, f"a write of {len(data)} bytes: write at most {MAX_WRITE} at a time")
            outcome.failed(1, too_big)
            self.error_log.add(where, too_big)
            return outcome
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        outcome.numbered = len(lines) > 1
        for number, line in enumerate(lines, 1):
            try:
                outcome.succeeded(number, await self._bounded(command, target, split_words(line), pid))
            except TtmError as failed:
                error = TtmError(failed.errno or errno.EIO, readable(failed.message))
                outcome.failed(number, error)
                self.error_log.add(f"{where} {line[:200]}", error)
                trace = self.machine.vdev.ttm.trace
                if trace.on:
                    trace.emit("error", name or "", request=command.name, errno=error.errno, why=error.message)
                if target is not None:
                    target.last_error = error.message
                break
            except Exception as failure:  # the daemon outlives any command
                log.exception("command %s %r", where, line[:200])
                internal = TtmError(errno.EIO, f"internal error: {type(failure).__name__}: {failure}")
                outcome.failed(number, internal)
                self.error_log.add(f"{where} {line[:200]}", internal)
                break
        return outcome

    async def _bounded(
        self, command: Command, target: Target | None, words: list[str], pid: int
    ) -> dict[str, object]:
        if self._closing:
            raise _shutting_down()
        with self._watched(pid) as running:
            return await run_line(self.machine, command, target, words)
        raise running.reason or TtmError(
            errno.ETIME, f"{command.name} did not end within {self.timeout:g} s (command_timeout)"
        )

    @contextmanager
    def _watched(self, pid: int) -> Iterator[_Running]:
        with trio.move_on_after(self.timeout) as scope:
            running = _Running(Opener(pid), scope)
            self._running.add(running)
            try:
                yield running
            finally:
                self._running.discard(running)

    async def watch_signals(self) -> None:
        """Background: end commands whose opener has a signal pending that ends them. In a thread: there may be many."""
        pause = SIGNAL_INTERVAL
        while True:
            await trio.sleep(pause)
            if not self._running:
                continue
            waiting = tuple(self._running)
            started = trio.current_time()
            try:
                told = await trio.to_thread.run_sync(_told_to_end, waiting, abandon_on_cancel=True)
            except RuntimeError:
                # No thread is to be had just now. The commands have their bounds all the same.
                told = []
            for running in told:
                running.stop(TtmError(errno.EINTR, "the process that gave the command was signaled"))
            pause = max(SIGNAL_INTERVAL, 10 * (trio.current_time() - started))

    def close(self) -> None:
        """Shutdown: end all commands, run no more."""
        self._closing = True
        for running in tuple(self._running):
            running.stop(_shutting_down())


def _told_to_end(waiting: tuple[_Running, ...]) -> list[_Running]:
    return [running for running in waiting if running.opener.told_to_end()]


def _shutting_down() -> TtmError:
    return TtmError(errno.ESHUTDOWN, "the mount is being taken down")
