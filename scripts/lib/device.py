"""A mounted ttmfs device for a script: mounted by the command line, as a user would, and always unmounted.

Promise: nothing here touches the mount from this process, so a daemon that hangs cannot hang the script: every access
is a child with a time limit, and `stop` falls back to aborting the connection through fusectl.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534
"""A user without rights: whoever else owns nothing here."""
FUSECTL = Path("/sys/fs/fuse/connections")
IMPORTED_TTMFS = [sys.executable, "-c", "from ttmfs.cli import main; main()"]
"""Calls the ttmfs that `import ttmfs` finds."""


class ScriptError(Exception):
    """Something a script cannot go on without; the message says what."""


def mounts() -> list[tuple[str, str]]:
    """Path and device number (`major:minor`) of each mount that this process can see, asked of the kernel."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    fields = [line.split(" ") for line in lines]
    return [(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), parts[4]), parts[2]) for parts in fields]


def ttmfs_command() -> list[str]:
    """How to call ttmfs: the environment's own, or what TTMFS_COMMAND says."""
    if text := os.environ.get("TTMFS_COMMAND"):
        return shlex.split(text)
    program = Path(sys.executable).parent / "ttmfs"
    return [str(program)] if program.exists() else IMPORTED_TTMFS


class Device:
    """A mounted device; a context manager. `prefix` runs everything as another user (see `unprivileged`)."""

    beside: ClassVar[list[Callable[[Device], AbstractContextManager[None]]]] = []
    """What runs beside every device, from its mount to its unmount: a profiler, say."""

    def __init__(self, options: list[str], *, prefix: list[str] | None = None, keep: bool = False) -> None:
        self.options = options
        self.prefix = prefix or []
        self.keep = keep
        self._stopped = False
        self._beside = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="ttmfs-script-"))
        self.mount = self.directory / "mnt"
        self.mount.mkdir()
        if self.prefix:
            for path in (self.directory, self.mount):
                os.chown(path, NOBODY, NOBODY)

    def __enter__(self) -> Device:
        command = [*self.prefix, *ttmfs_command(), "mount", str(self.mount), *self.options]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=self.directory)
        except subprocess.TimeoutExpired:
            self.stop()
            raise ScriptError(f"{shlex.join(command)} did not return in 60 s") from None
        if done.returncode:
            self.stop()
            raise ScriptError(f"{shlex.join(command)} failed:\n{done.stderr or done.stdout}")
        try:
            for companion in self.beside:
                self._beside.enter_context(companion(self))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            self._beside.close()
        finally:
            self.stop()

    def run(self, command: list[str], seconds: float, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command that may touch the mount, with a time limit (raises subprocess.TimeoutExpired)."""
        return subprocess.run(
            [*self.prefix, *command], capture_output=True, text=True, timeout=seconds, check=False, **more
        )

    def read(self, name: str, seconds: float = 10) -> str:
        """The text of one file of the mount; ScriptError if it cannot be read in time."""
        try:
            done = self.run(["cat", str(self.mount / name)], seconds)
        except subprocess.TimeoutExpired:
            raise ScriptError(f"reading {name} of the mount took more than {seconds} s") from None
        if done.returncode:
            raise ScriptError(f"cannot read {name} of the mount: {done.stderr.strip()}")
        return done.stdout

    def write(self, name: str, text: str, seconds: float = 90) -> None:
        """Write one command into a file of the mount; ScriptError with the reason if it fails."""
        script = 'printf "%s\\n" "$1" > "$2"'
        try:
            done = self.run(["bash", "-c", script, "write", text, str(self.mount / name)], seconds)
        except subprocess.TimeoutExpired:
            raise ScriptError(f"the command {text!r} in {name} took more than {seconds} s") from None
        if done.returncode:
            why = f"{done.stderr.strip()}\n{self.tail('error_log', 1)}"
            raise ScriptError(f"the command {text!r} in {name} failed: {why}")

    def stats(self) -> dict[str, Any]:
        """MNT/stats."""
        found: dict[str, Any] = json.loads(self.read("stats"))
        return found

    def tail(self, name: str, lines: int) -> str:
        """The last lines of a file of the mount, or why they cannot be had."""
        try:
            return "\n".join(self.read(name).splitlines()[-lines:])
        except ScriptError as error:
            return f"({error})"

    def diagnosis(self) -> str:
        """What to print after a failure."""
        return f"--- error_log\n{self.tail('error_log', 40)}\n--- trace (last lines)\n{self.tail('trace', 40)}"

    def connection(self) -> int | None:
        """The number of the FUSE connection, asked of the kernel's mount table and not of the daemon."""
        for path, device in mounts():
            if path == str(self.mount):
                return int(device.split(":")[1])
        return None

    def is_mounted(self) -> bool:
        """Whether the kernel has a mount there."""
        return self.connection() is not None

    def stop(self) -> str | None:
        """Unmount; returns what had to be forced, or None when `ttmfs umount` did it."""
        forced = None
        if self.is_mounted():
            try:
                done = self.run([*ttmfs_command(), "umount", str(self.mount)], 60)
                forced = done.stderr.strip() or f"status {done.returncode}" if done.returncode else None
            except subprocess.TimeoutExpired:
                forced = "ttmfs umount did not return in 60 s"
        if self.is_mounted():
            forced = f"{forced or 'ttmfs umount left the mount'}; aborted the connection"
            self._abort()
        if self.keep:
            if not self._stopped:
                print(f"kept: {self.directory}", file=sys.stderr)
        elif not self.is_mounted():
            shutil.rmtree(self.directory, ignore_errors=True)
        self._stopped = True
        return forced

    def _abort(self) -> None:
        number = self.connection()
        abort = FUSECTL / str(number) / "abort"
        if not FUSECTL.joinpath(str(number)).exists() and os.geteuid() == 0:
            subprocess.run(["mount", "-t", "fusectl", "none", str(FUSECTL)], capture_output=True, check=False)
        if abort.exists() and os.access(abort, os.W_OK):
            abort.write_text("1")
        unmount = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
        subprocess.run([*unmount, str(self.mount)], capture_output=True, timeout=20, check=False)
