"""The process that serves a mount's metrics, for `ttmfs mount --metrics-listen`: from before the mount to its end.

It listens before anything is mounted: an address that cannot be had fails the command while nothing has happened yet.
The daemon itself must not serve: a thread of it that reads its own mount could keep it from ending.
"""

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Final

from ttmfs.errors import TtmError

COMMAND: Final = "serve-metrics"
"""The hidden command of ttmfs that it runs."""

_GO: Final = b"go\n"


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT; [::1]:9464 is one too. TtmError(EINVAL)."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdecimal() and int(port) < 1 << 16):
        raise TtmError(errno.EINVAL, f"{text!r} is no address: say HOST:PORT, as in 127.0.0.1:9464 (port 0: any)")
    return host, int(port)


@contextlib.contextmanager
def metrics_process(path: str, address: str, stays: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Listen on `address` for the mount that will be at `path`: the URL, and what to call when the mount is there.

    The process ends with the mount, or when the block fails; and where it does not stay, at the block's end. TtmError
    when it cannot listen.
    """
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "ttmfs", COMMAND, path, address],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/",
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None
    left = False
    try:
        with server.stdout, server.stdin:
            url = _url(server.stdout.readline())
            os.set_blocking(server.stdin.fileno(), False)
            yield url, lambda: _tell(server)
        left = stays
    finally:
        if not left:
            server.kill()
            server.wait()


def _tell(server: "subprocess.Popen[bytes]") -> None:
    assert server.stdin is not None
    # One that has ended meanwhile takes no mount along.
    with contextlib.suppress(OSError):
        os.write(server.stdin.fileno(), _GO)


def _url(line: bytes) -> str:
    if not line:
        raise TtmError(errno.EIO, "the server of metrics ended at once: `ttmfs metrics --listen` shows why")
    report = json.loads(line)
    if "error" in report:
        raise TtmError(report["errno"], report["error"])
    url: str = report["url"]
    return url
