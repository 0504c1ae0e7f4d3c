"""Who may ask the page's server: this user, from a page that this server gave.

A server on 127.0.0.1 is within reach of every user of the machine and of every page that a browser here has open. So a
request must come from a process of the user who started it (or root), its Host must be this machine's own name (a name
that is made to point here is refused), and its Origin, when it says one, this very server.
"""

import ipaddress
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

HOSTS: Final = ("127.0.0.1", "localhost")

HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


def peer_uid(table: str, address: str, port: int) -> int | None:
    """The user of the IPv4 socket `address`:`port`, from the text of /proc/net/tcp; None when it is not there."""
    wanted = f"{int.from_bytes(ipaddress.IPv4Address(address).packed, 'little'):08X}:{port:04X}"
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and fields[1] == wanted:
            return int(fields[7])
    return None


def is_ours(client: tuple[str, int] | None) -> bool:
    """Whether a connection comes from a process of this user or of root; where there is no table it counts as one."""
    try:
        with open("/proc/net/tcp", encoding="ascii") as file:
            table = file.read()
    except OSError:
        return True
    return client is not None and peer_uid(table, client[0], client[1]) in (os.geteuid(), 0)


def refusal(headers: Mapping[str, str]) -> str:
    """Why a request is not answered; "" when it is."""
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
        return f"this page is at 127.0.0.1 only, not at {host[:80]!r}"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return f"another page ({origin[:80]}) may not ask this one's server"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "another page may not ask this one's server"
    return ""


class Guard:
    """Wraps an application: refuses with 403 and a sentence, and puts the headers on that keep browsers careful."""

    def __init__(self, app: Application) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        why = refusal(Headers(scope=scope))
        if not why and not is_ours(scope.get("client")):
            why = "this page is for the user who started ttm-web"
        if why:
            await PlainTextResponse(f"{why}\n", 403)(scope, receive, send_with_headers)
        else:
            await self.app(scope, receive, send_with_headers)
