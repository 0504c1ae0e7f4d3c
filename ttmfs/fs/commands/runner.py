"""Runner: executes the lines of one write into a command file, bounded and interruptible.

A waiting command ends with EINTR when its opener has a signal pending that says so (`kernel/processes.py`), with ETIME
after `command_timeout`, with ESHUTDOWN at shutdown.
"""

import errno
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import trio

from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Target, run_line
from ttmfs.fs.commands.error_log import ErrorLog
from ttmfs.fs.commands.handles import CommandOutcome
from ttmfs.fs.commands.quoting import MAX_WRITE, is_plain, readable, split_words
from ttmfs.fs.commands.results import KeptResults
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.processes import Opener
from ttmfs.observe import points
from ttmfs.observe.asker import ASKER, WHY
from ttmfs.observe.recorder import Recorder
from ttmfs.sync.bell import Bell
from ttmfs.sync.breather import Breather
from ttmfs.sync.offload import in_thread

log = logging.getLogger(__name__)

SIGNAL_INTERVAL: Final = 0.05
"""Seconds between two looks at the signals of those who wait, if looking takes no longer than a tenth of that."""

MAX_COMMANDS: Final = 3072
"""Commands that may be under way at once. Each takes one of the requests that a mount can have waiting (H8)."""
MAX_COMMANDS_OF_A_USER: Final = 512
"""Those of one user who is neither root nor the one who mounted: no crowd of them keeps others from being served."""
_MAX_RESULTS: Final = 16 << 20
"""Bytes of results beyond which a write runs no more lines."""
_LONG_LINE: Final = 4096
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
_NO_DESCRIPTOR_LEFT: Final = "the daemon has no descriptor left: give it more with prlimit --nofile, or try again"
_WANTS: Final = (errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def note_want(recorder: Recorder, bo: str, error: OSError) -> None:
    """Have the recorder keep what has failed for want of memory or room."""
    if error.errno in _WANTS:
        recorder.note("error", bo, f"{errno.errorcode[error.errno]}: {error.strerror}")


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
    """Runs commands for one mount, which the user `owner` has made."""

    def __init__(self, machine: Machine, timeout: float, owner: int = 0) -> None:
        self.machine = machine
        self._owner = owner
        self.timeout = timeout
        self.error_log = ErrorLog((0, owner))
        self.results = KeptResults()
        self._running: set[_Running] = set()
        self._came = Bell()
        """For who looks at the signals of those who have given commands."""
        self._users: Counter[int] = Counter()
        """Commands under way by user id."""
        self._closing = False

    async def run(
        self, command: Command, name: str | None, target: Target | None, data: bytes, opening: Opening
    ) -> CommandOutcome:
        """Run every line of `data` in order, stopping at the first failure. Never raises.

        However many lines there are, and however many such writes: others are served between any two of them. When it
        returns, nobody is shown attributes of before.
        """
        outcome = await self._run(command, name, target, data, opening)
        await self.machine.names.root.cache.settle()
        return outcome

    async def _run(
        self, command: Command, name: str | None, target: Target | None, data: bytes, opening: Opening
    ) -> CommandOutcome:
        where = command.name if name is None else f"{name} {command.name}"
        try:
            self._check_write(data, opening.uid)
        except TtmError as refused:
            outcome = CommandOutcome()
            outcome.failed(1, refused)
            self.error_log.add(where, refused, opening.uid)
            return outcome
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        if len(lines) > 1 and not lines[-1]:
            lines.pop()
        outcome = CommandOutcome(numbered=len(lines) > 1)
        breather = Breather(queue=len(lines) > 1)
        for number, line in enumerate(lines, 1):
            try:
                await breather.step()
                if outcome.size > _MAX_RESULTS:
                    raise TtmError(errno.E2BIG, f"{number - 1} lines have results of {outcome.size} bytes: write fewer")
                outcome.succeeded(number, await self._bounded(command, target, line, opening, where))
            except OSError as failed:
                if not isinstance(failed, TtmError) and failed.errno not in _NO_DESCRIPTOR:
                    self._internal(outcome, number, f"{where} {line[:200]}", failed, opening.uid)
                    break
                message = failed.message if isinstance(failed, TtmError) else _NO_DESCRIPTOR_LEFT
                error = TtmError(failed.errno or errno.EIO, readable(message))
                outcome.failed(number, error)
                self.error_log.add(f"{where} {line[:200]}", error, opening.uid)
                note_want(self.machine.vdev.ttm.recorder, name or "", error)
                trace = self.machine.vdev.ttm.trace
                points.error(trace, name or "", request=command.name, errno=error.errno, why=error.message)
                if target is not None:
                    target.last_error = error.message
                break
            except Exception as failure:  # the daemon outlives any command
                self._internal(outcome, number, f"{where} {line[:200]}", failure, opening.uid)
                break
        return outcome

    def _internal(self, outcome: CommandOutcome, number: int, what: str, failure: Exception, uid: int) -> None:
        """Nobody expected this: a traceback in the log, EIO for the program."""
        log.exception("command %r", what)
        internal = TtmError(errno.EIO, f"internal error: {type(failure).__name__}: {failure}")
        outcome.failed(number, internal)
        self.error_log.add(what, internal, uid)

    def _check_write(self, data: bytes, uid: int) -> None:
        """May it run at all? TtmError: E2BIG too long, EAGAIN too many commands are under way."""
        if len(data) > MAX_WRITE:
            raise TtmError(errno.E2BIG, f"a write of {len(data)} bytes: write at most {MAX_WRITE} at a time")
        mine = self._users[uid]
        if len(self._running) >= MAX_COMMANDS or (uid not in (0, self._owner) and mine >= MAX_COMMANDS_OF_A_USER):
            raise TtmError(
                errno.EAGAIN, f"{len(self._running)} commands are under way, {mine} of them yours: wait for one to end"
            )

    async def _bounded(
        self, command: Command, target: Target | None, line: str, opening: Opening, where: str
    ) -> dict[str, object]:
        if self._closing:
            raise _shutting_down()
        ASKER.set(opening.pid)
        WHY.set(f"{where} {line[:200]}".rstrip())
        with self._watched(opening) as running:
            machine = replace(self.machine, caller=opening)
            return await run_line(machine, command, target, await _words(line))
        raise running.reason or TtmError(
            errno.ETIME, f"{command.name} did not end within {self.timeout:g} s (command_timeout)"
        )

    @contextmanager
    def _watched(self, opening: Opening) -> Iterator[_Running]:
        with trio.move_on_after(self.timeout) as scope:
            running = _Running(Opener(opening.pid), scope)
            self._running.add(running)
            self._came.ring()
            self._users[opening.uid] += 1
            try:
                yield running
            finally:
                self._running.discard(running)
                self._users[opening.uid] -= 1
                if not self._users[opening.uid]:
                    del self._users[opening.uid]

    async def watch_signals(self) -> None:
        """Background: end commands whose opener has a signal pending that ends them. In a thread: there may be many."""
        pause = SIGNAL_INTERVAL
        while True:
            while not self._running:
                await self._came.heard()
            await trio.sleep(pause)
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


async def _words(line: str) -> list[str]:
    """The words of a line; a long one with quotes is split in a thread, character by character as that is."""
    if len(line) <= _LONG_LINE or is_plain(line):
        return split_words(line)
    return await in_thread(split_words, line)


def _told_to_end(waiting: tuple[_Running, ...]) -> list[_Running]:
    return [running for running in waiting if running.opener.told_to_end()]


def _shutting_down() -> TtmError:
    return TtmError(errno.ESHUTDOWN, "the mount is being taken down")
