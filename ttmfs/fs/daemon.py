"""Daemon: run a mount in the background, and report in the parent how it went.

The parent forks before anything is made (arenas are not shared with children) and waits on a pipe for one line of the
daemon: ready, or why not.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from ttmfs.errors import TtmError

log = logging.getLogger(__name__)


def run_in_background(serve: Callable[[Callable[[], None]], None], log_file: str | None) -> None:
    """Run `serve(ready)` in a daemon; return when it called `ready`. TtmError with the daemon's reason if it fails."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        _raise_unless_ready(answer)
        return
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    _serve_detached(serve, writer, log_file)


def _raise_unless_ready(answer: bytes) -> None:
    if not answer:
        raise TtmError(5, "the daemon ended before the mount was ready: run it with --foreground to see why")
    report = json.loads(answer)
    if "error" in report:
        raise TtmError(report["errno"], report["error"])


def _serve_detached(serve: Callable[[Callable[[], None]], None], writer: int, log_file: str | None) -> NoReturn:
    def say(report: dict[str, object]) -> None:
        os.write(writer, json.dumps(report).encode())
        os.close(writer)

    said = False

    def ready() -> None:
        nonlocal said
        said = True
        say({"ready": True})

    code = 0
    try:
        os.chdir("/")
        _redirect_stdio(log_file)
        # Whoever waits for the end of a pipe that the caller had open must not wait for the daemon.
        os.closerange(3, writer)
        os.closerange(writer + 1, os.sysconf("SC_OPEN_MAX"))
        serve(ready)
    except OSError as error:
        code = 1
        log.error("%s", error)
        if not said:
            named = f"{error.filename}: " if error.filename is not None else ""
            say({"errno": error.errno or 5, "error": f"{named}{error.strerror or error}"})
    except BaseException as error:  # the parent waits for a word, whatever happened
        code = 1
        log.exception("the daemon failed")
        if not said:
            say({"errno": 5, "error": f"{type(error).__name__}: {error}"})
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect_stdio(log_file: str | None) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    sink = null
    if log_file is not None:
        sink = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(null, 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
