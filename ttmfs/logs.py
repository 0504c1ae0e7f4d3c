"""Logs: where the daemon's messages go: standard error (in the foreground, or a file by then), or the system's log.

Nothing that a log does may hold the loop up: the system's log is written without waiting, and what it does not take is
lost.
"""

import logging
import os
import stat
from logging.handlers import SysLogHandler
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")
SYSLOG: Final = "/dev/log"


class _NeverWaiting(SysLogHandler):
    """The system's log through its socket, which is never waited for."""

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]
        vars(self)["socket"].setblocking(False)


def set_up(level: str | None, *, stderr: bool, syslog: str = SYSLOG) -> None:
    """Messages from `level` on go to standard error (default `info`), else to the system's log (`warning`).

    Called in the daemon, after it has let go of its caller's descriptors. Without a log of the system there is none.
    """
    root = logging.getLogger()
    root.setLevel((level or ("info" if stderr else "warning")).upper())
    if stderr:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    elif _is_socket(syslog):
        handler = _NeverWaiting(syslog)
        handler.setFormatter(logging.Formatter("ttmfs[%(process)d]: %(levelname)s %(name)s: %(message)s"))
    else:
        handler = logging.NullHandler()
    root.addHandler(handler)


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False
