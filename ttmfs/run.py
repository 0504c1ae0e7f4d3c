"""Run: a device for the time of one command. What `ttmfs run` does around COMMAND.

Its own failures have a status of their own, 125, as those of `env` and `docker run`; 126 and 127 are a shell's: COMMAND
cannot be run, and is not there. Everything else is COMMAND's status, 128 + N when signal N has ended it.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Final

import click

from ttmfs.driver.config import Config
from ttmfs.errors import TtmError
from ttmfs.fs.commands.trace import set_trace
from ttmfs.fs.daemon import run_in_background
from ttmfs.fs.kernel import busy, tuning
from ttmfs.fs.mount import Mount, check_mountpoint
from ttmfs.observe.trace import Trace

OWN_FAILURE: Final = 125
CANNOT_RUN: Final = 126
NOT_FOUND: Final = 127
KEPT: Final = ("error_log", "stats", "metrics", "trace", "options", "ctl/config", "debug/tasks", "debug/recorder")
"""What `--keep` copies, beside the map of each region."""
_TAIL: Final = 5
_READ_SECONDS: Final = 20.0
"""How long all that is read from the mount at the end may take."""


def run(command: Sequence[str], config: Config, keep: str | None = None, events: str | None = None) -> int:
    """Mount a temporary device, run `command` with $TTMFS_MOUNT, take the device down; the exit status.

    `keep`: a folder that gets error_log, stats, metrics, the trace, the maps and the knobs, whatever came of it.
    `events`: what ctl/trace is set to before. TtmError when it cannot be mounted, or `events` names no event.
    """
    if events is not None:
        set_trace(Trace(1), events)
    if keep is not None:
        os.makedirs(keep, exist_ok=True)
    where = tempfile.mkdtemp(prefix="ttmfs-")
    try:
        path = check_mountpoint(where)
        run_in_background(lambda ready: Mount(path, config).run(ready), None)
    except BaseException:
        os.rmdir(where)
        raise
    try:
        if events is not None and not _bounded(lambda: _write(f"{where}/ctl/trace", events)):
            raise TtmError(5, f"{where}/ctl/trace cannot be written")
        code = _run_command(command, {**os.environ, "TTMFS_MOUNT": where})
        if keep is not None and not _bounded(lambda: _keep(where, keep)):
            click.echo(f"ttmfs: {keep} is not complete: the device has not answered", err=True)
        if code:
            _bounded(lambda: _show_failures(where))
    finally:
        _take_down(where)
    return code


def _run_command(command: Sequence[str], environment: dict[str, str]) -> int:
    """Run it to its end; its status as a shell gives it.

    A terminal sends ^C and ^\\ to the command as well, so they are its business; TERM and HUP are handed on to it.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        del frame
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    # Handlers, not SIG_IGN: those go back to the default in the command.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        click.echo(f"ttmfs: {command[0]}: {error.strerror}", err=True)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN
    for signum in early:
        child.send_signal(signum)
    code = child.wait()
    return code if code >= 0 else 128 - code


def _bounded(work: Callable[[], None]) -> bool:
    """Do something that touches the mount, in a fork that is left behind when it takes too long: has it been done?"""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            sys.stderr.flush()
            status = 0
        except OSError as error:
            click.echo(f"ttmfs: {error}", err=True)
        finally:
            os._exit(status)
    ended = os.pidfd_open(child)
    try:
        if not select.select([ended], [], [], _READ_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
            return False
        return os.waitpid(child, 0)[1] == 0
    finally:
        os.close(ended)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _keep(where: str, folder: str) -> None:
    """Copy what the device says of itself; `ctl/config` is `config`, the map of vram `map.vram`. OSError."""
    files = {name.rsplit("/", 1)[-1]: name for name in KEPT}
    files |= {f"map.{region}": f"regions/{region}/map" for region in os.listdir(f"{where}/regions")}
    for name, source in files.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(_read(f"{where}/{source}"))


def _show_failures(where: str) -> None:
    """The last lines of error_log, on standard error: perhaps they say why the command has failed."""
    if not os.path.exists(f"{where}/error_log"):
        click.echo(f"ttmfs: the device was unmounted from {where} before the command had ended", err=True)
        return
    lines = _read(f"{where}/error_log").decode("utf-8", "surrogateescape").splitlines()
    for line in lines[-_TAIL:]:
        _when, code, what, why, _who = line.split("\t")
        click.echo(f"ttmfs: {what}: {code}: {why}", err=True)


def _take_down(where: str) -> None:
    """Unmount, by force if somebody still uses it."""
    if tuning.unmount(where):
        for user in busy.users_of(where):
            click.echo(f"ttmfs: the command has ended, and loses the mount: {user}", err=True)
        with contextlib.suppress(OSError):
            tuning.abort_connection(tuning.connection_number(where))
        tuning.lazy_unmount(where)
    try:
        os.rmdir(where)
    except OSError as error:
        click.echo(f"ttmfs: {where} stays: {error.strerror}", err=True)
