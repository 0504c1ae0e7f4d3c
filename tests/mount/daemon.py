"""A daemon under test: `daemon.py [PATCH[=ARGUMENT]…] -- MOUNTPOINT [mount options]`.

Applies the named patches (rules.py), then runs `ttmfs mount --foreground`. Speaks JSON lines: {"ready": …} when it is
mounted, then [number, name, arguments] in and {"id", "value"|"error"} out, for the methods of holds.Control. When its
input ends, so does it, and the mount with it: a test run that dies leaves nothing behind. `daemon.py --forks
DESCRIPTOR` is the process that daemons are forked from (forks.py).
"""

import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.mount.forks import forked
from tests.mount.holds import Control, install_holds
from tests.mount.rules import PATCHES
from ttmfs.cli import main as cli
from ttmfs.fs.kernel import tuning
from ttmfs.fs.mount import Mount

_answering = threading.Lock()


def _say(message: dict[str, Any]) -> None:
    with _answering:
        os.write(1, json.dumps(message, default=str).encode() + b"\n")


def _serve_control(control: Control, token: trio.lowlevel.TrioToken, connection: int, mountpoint: str) -> None:
    """In a thread of its own: it must work while the loop is wedged."""
    for line in sys.stdin:
        number, name, arguments = json.loads(line)
        if name == "wedge":
            token.run_sync_soon(time.sleep, 3600.0)
            _say({"id": number, "value": None})
            continue
        try:
            method = getattr(control, name)
            runner = trio.from_thread.run if inspect.iscoroutinefunction(method) else trio.from_thread.run_sync
            value = runner(partial(method, **arguments), trio_token=token)
            _say({"id": number, "value": value})
        except BaseException:
            _say({"id": number, "error": traceback.format_exc()})
    tuning.abort_connection(connection)
    tuning.lazy_unmount(mountpoint)
    os.kill(os.getpid(), signal.SIGKILL)


def _install_control() -> None:
    real_run = Mount.run

    def run(self: Mount, ready: Callable[[], None]) -> None:
        def ready_too() -> None:
            ready()
            connection = tuning.connection_number(self.mountpoint)
            arguments = (Control(self), trio.lowlevel.current_trio_token(), connection, self.mountpoint)
            threading.Thread(target=_serve_control, args=arguments, daemon=True).start()
            _say({"ready": True, "connection": connection})

        real_run(self, ready_too)

    Mount.run = run  # type: ignore[method-assign]


def main() -> None:
    """See the module."""
    arguments = forked(int(sys.argv[2])) if sys.argv[1] == "--forks" else sys.argv[1:]
    split = arguments.index("--")
    install_holds()
    _install_control()
    for patch in arguments[:split]:
        name, equals, argument = patch.partition("=")
        PATCHES[name](*([argument] if equals else []))
    cli(["mount", "--foreground", *arguments[split + 1 :]])


if __name__ == "__main__":
    main()
