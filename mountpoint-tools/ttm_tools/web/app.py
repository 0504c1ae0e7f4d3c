"""The routes of the page: its files, the stream of what changes, details of BOs, commands."""

import asyncio
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.threads import in_thread
from ttm_tools.web import commands
from ttm_tools.web.guard import Application, Guard
from ttm_tools.web.palette import PALETTE
from ttm_tools.web.state import Seen, State
from ttm_tools.why import in_vms, last_of

STATIC: Final = Path(__file__).with_name("static")
STATUSES: Final = 250
WHY: Final = 8
"""Sentences about a BO in its details."""
_BODY: Final = 1 << 20


def answer(value: object, status: int = 200) -> Response:
    """JSON in ASCII: names of BOs may hold bytes that are no UTF-8."""
    return Response(json.dumps(value), status, media_type="application/json")


class Page:
    """One server. `watched` is told how many pages are open; what commands need a token for is refused without one."""

    def __init__(
        self,
        state: State,
        reader: Device,
        commander: Device,
        watched: Callable[[int], None],
        token: str | None,
        interval: float,
    ) -> None:
        self.state = state
        self.reader = reader
        self.commander = commander
        self.token = token
        self.interval = interval
        self._watched = watched
        self._open = 0
        self._closing = False
        self._news = asyncio.Event()

    def application(self) -> Application:
        """The ASGI application."""
        routes = [
            Route("/", self.index),
            Route("/events", self.events),
            Route("/api/status", self.statuses, methods=["POST"]),
            Route("/api/bo", self.bo, methods=["POST"]),
            Route("/api/command", self.command, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
        ]
        return Guard(Starlette(routes=routes))

    def changed(self) -> None:
        """There is something new: every stream wakes. Called on the loop."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """End the streams."""
        self._closing = True
        self.changed()

    async def index(self, _request: Request) -> Response:
        """The page."""
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    async def events(self, _request: Request) -> Response:
        """What changes, as server-sent events."""
        return StreamingResponse(self._stream(), media_type="text/event-stream")

    async def _stream(self) -> AsyncIterator[str]:
        self._count(1)
        seen = Seen()
        try:
            hello = {
                "mount": self.reader.mount,
                "interval": self.interval,
                "commands": self.token is not None,
                "palette": PALETTE,
            }
            yield f"retry: 1000\nevent: hello\ndata: {json.dumps(hello)}\n\n"
            while not self._closing:
                news = self._news
                message = self.state.message(seen)
                if message != "{}":
                    yield f"data: {message}\n\n"
                await news.wait()
            if self.state.ended:
                yield f"event: ended\ndata: {json.dumps(self.state.ended)}\n\n"
        finally:
            self._count(-1)

    def _count(self, by: int) -> None:
        self._open += by
        self._watched(self._open)

    async def statuses(self, request: Request) -> Response:
        """status.json of some BOs, by name."""
        asked = await self._body(request)
        names = asked.get("names") if asked else None
        if not isinstance(names, list) or not all(map(is_name, names)):
            return answer({"error": "names: a list of names"}, 400)
        return await self._answered(lambda: self.reader.statuses(names[:STATUSES]))

    async def bo(self, request: Request) -> Response:
        """One BO: its status, its pages as runs of snapshot's letters, and why it is where it is."""
        asked = await self._body(request)
        name = asked.get("name") if asked else None
        if not is_name(name):
            return answer({"error": "name: the name of a BO"}, 400)
        return await self._answered(lambda: detail(self.reader, str(name)))

    async def command(self, request: Request) -> Response:
        """A command; needs the token."""
        if self.token is None:
            return answer({"ok": False, "error": "ttm-web was started without --allow-commands"}, 403)
        if not hmac.compare_digest(request.headers.get("x-ttm-token", "").encode(), self.token.encode()):
            return answer({"ok": False, "error": "open the page by the address that ttm-web printed"}, 403)
        asked = await self._body(request)
        file, words = (asked.get("file"), asked.get("words", "")) if asked else (None, "")
        if not isinstance(file, str) or not isinstance(words, str) or not commands.is_allowed(file, words):
            return answer({"ok": False, "error": "this is no command of the page"}, 400)
        return await self._answered(lambda: commands.run(self.commander, file, words))

    async def _body(self, request: Request) -> dict[str, Any] | None:
        """The JSON object of a request; None when it is none, or too long."""
        data = b""
        async for piece in request.stream():
            data += piece
            if len(data) > _BODY:
                return None
        try:
            value = json.loads(data)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    async def _answered(self, action: Callable[[], Any]) -> Response:
        try:
            return answer(await in_thread(action))
        except MountError as error:
            return answer({"ok": False, "error": error.message}, 503)
        except FileNotFoundError:
            return answer({"ok": False, "error": "it is gone"}, 404)
        except OSError as error:
            return answer({"ok": False, "error": error.strerror}, 403)


def is_name(name: object) -> bool:
    """Whether this can be the path of a BO below bo/, and leads nowhere else."""
    return isinstance(name, str) and "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def detail(device: Device, name: str) -> dict[str, Any]:
    """A BO's status.json, `runs`: [letter, pages] of its snapshot, and `why`: what `ttm-why` says, its VMs and then the
    latest first.

    FileNotFoundError when it is gone.
    """
    status = device.json(f"objects/{name}/status.json")
    letters = device.text(f"objects/{name}/snapshot").rstrip("\n")
    runs = [[letter, sum(1 for _ in same)] for letter, same in itertools.groupby(letters)]
    why = in_vms(device, name) + last_of(device, name, WHY, status.get("vm", ""))
    return {"status": status, "runs": runs, "why": why}
