"""Forks: which process came of which, as the kernel tells it (the proc connector, drivers/connector/cn_proc.c).

An event is queued here before the new process runs at all, so whoever reads what is queued before it asks knows every
process there is. Only for root with CAP_NET_ADMIN in the first user, process and network namespaces; elsewhere nothing
answers, and there are no Forks.
"""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Self

_NETLINK_CONNECTOR: Final = 11
_CN_IDX_PROC: Final = 1
_CN_VAL_PROC: Final = 1
_LISTEN, _IGNORE = 1, 2
"""PROC_CN_MCAST_LISTEN, PROC_CN_MCAST_IGNORE"""
_NONE, _FORK, _EXIT = 0, 1, 0x80000000
"""PROC_EVENT_NONE, which answers LISTEN, and what else is of interest."""
_NLMSGHDR: Final = struct.Struct("=IHHII")
_NLMSG_DONE: Final = 3
_CN_MSG: Final = struct.Struct("=IIIIHH")
_EVENT: Final = struct.Struct("=IIQ4i")
"""struct proc_event, as far as the four numbers of a fork."""
_AT: Final = _NLMSGHDR.size + _CN_MSG.size
_BUFFER: Final = 4 << 20
"""Bytes of queued events: some 5,000."""


class Event(NamedTuple):
    """A process has forked a child, or, with no `child`, one of its threads has ended."""

    process: int
    child: int


class Forks:
    """A socket on which they are told, to be closed."""

    def __init__(self, events: socket.socket) -> None:
        self._socket = events

    @classmethod
    def listen(cls) -> Self | None:
        """None where the kernel does not tell."""
        if not hasattr(socket, "AF_NETLINK"):
            return None
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        try:
            forks = cls(socket.socket(socket.AF_NETLINK, kind, _NETLINK_CONNECTOR))
        except OSError:
            return None
        try:
            if forks._begin():
                return forks
        except OSError:
            pass
        forks.close()
        return None

    def _begin(self) -> bool:
        """Is LISTEN answered, with no error? The kernel does that before `send` returns, or not at all."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_RCVBUFFORCE", 33), _BUFFER)
        self._socket.bind((0, _CN_IDX_PROC))
        number = os.getpid()
        self._send(_LISTEN, number)
        for message in self._messages():
            what, _cpu, _time, error, *_ = _EVENT.unpack_from(message, _AT)
            if what == _NONE and _CN_MSG.unpack_from(message, _NLMSGHDR.size)[3] == number + 1:
                return not error
        return False

    def _send(self, operation: int, number: int) -> None:
        body = struct.pack("=I", operation)
        message = _CN_MSG.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, number, len(body), 0) + body
        self._socket.sendto(_NLMSGHDR.pack(_NLMSGHDR.size + len(message), _NLMSG_DONE, 0, 0, 0) + message, (0, 0))

    def _messages(self) -> Iterator[bytes]:
        while True:
            try:
                message, sender = self._socket.recvfrom(512)
            except BlockingIOError:
                return
            if sender[0] == 0 and len(message) >= _AT + _EVENT.size:
                yield message

    def events(self) -> Iterator[Event]:
        """Those that are queued, in their order. OSError(ENOBUFS): some were lost."""
        for message in self._messages():
            what, _cpu, _time, _first, second, third, fourth = _EVENT.unpack_from(message, _AT)
            if what == _FORK and third == fourth:
                yield Event(second, fourth)
            elif what == _EXIT:
                yield Event(second, 0)

    def fileno(self) -> int:
        """To wait for more."""
        return self._socket.fileno()

    def close(self) -> None:
        """The kernel need not tell any more."""
        with suppress(OSError):
            self._send(_IGNORE, 0)
        self._socket.close()
