"""Service: what a daemon that systemd runs tells it (sd_notify(3)); nothing where nobody listens."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send `state`, as in `READY=1`, to $NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # The service manager's own bound ends a service that it has not heard of; no mount fails for that.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(state.encode(), address)
