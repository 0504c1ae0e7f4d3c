"""Mounting and unmounting devices, by the command `ttmfs`: as a process of its own, or through one that stays.

Nothing of ttmfs is imported; its words are what the exceptions say.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from ttm_tools.access import let_go
from ttm_tools.errors import MountError

MOUNT_SECONDS: Final = 60.0
Option = str | int | float | bool | None | Sequence[str]
"""The value of a mount option: a size as `"64M"`, a number, True for a flag, several for what may be repeated."""


def program() -> str:
    """The command `ttmfs`: beside this Python, else on the PATH. MountError when there is none."""
    beside = os.path.join(os.path.dirname(sys.executable), "ttmfs")
    found = beside if os.access(beside, os.X_OK) else shutil.which("ttmfs")
    if found is None:
        raise MountError("ttmfs is not installed: `pip install` a checkout of it, or have it on the PATH")
    return found


def words_of(options: dict[str, Option]) -> list[str]:
    """Options of `ttmfs mount` as command line words: `visible_vram="8M"` is `--visible-vram 8M`."""
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, str | int | float):
            words += [option, str(value)]
        else:
            for one in value:
                words += [option, str(one)]
    return words


def run(words: Iterable[str]) -> None:
    """`ttmfs WORDS…`. MountError with its sentence when it fails."""
    done = subprocess.run(
        [program(), *words], capture_output=True, text=True, timeout=MOUNT_SECONDS, check=False, cwd="/"
    )
    check(done.returncode, done.stderr)


def check(status: int, said: str) -> None:
    """MountError with what ttmfs has said, if it failed."""
    if status:
        lines = [line for line in said.strip().splitlines() if line] or [f"ttmfs ended with status {status}"]
        at = next((number for number, line in enumerate(lines) if line.startswith("Error: ")), 0)
        raise MountError("\n".join([lines[at].removeprefix("Error: "), *lines[at + 1 :]]))


class Commands:
    """One `ttmfs batch` process: it has loaded what mounting needs and forks for each command, so a mount is quick.

    Begun at once, so that it loads while something else is done. Threads may share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [program(), "batch"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def run(self, words: Iterable[str]) -> None:
        """`ttmfs WORDS…`. MountError with its sentence when it fails."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with self._lock:
            line = b""
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(list(words)).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        if not line:
            raise MountError("`ttmfs batch` has ended")
        answer = json.loads(line)
        check(answer["status"], answer["said"])

    def close(self) -> None:
        """End it; what it has mounted stays."""
        let_go(self._process)
