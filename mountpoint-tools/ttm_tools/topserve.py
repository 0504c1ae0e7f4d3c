"""ttm-top in a browser: textual-serve runs the program and sends its screen, on 127.0.0.1.

Who opens the page has the keys, so the requests are looked at as those of ttm-web are: from this user's processes only,
and from no other page. textual-serve's own page would fetch a font from another host; here is one that does not.
"""

import shlex
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import click

from ttm_tools.errors import MountError
from ttm_tools.extras import needed

TEMPLATES: Final = Path(__file__).with_name("web") / "templates"


def serve(command: list[str], mount: str, port: int) -> None:
    """Serve until ^C. MountError when textual-serve is not installed, or the port is taken."""
    with needed("ttm-top --serve", "textual-serve", "web"):
        from aiohttp import web  # noqa: PLC0415
        from textual_serve.server import Server  # noqa: PLC0415

        from ttm_tools.web.guard import is_ours, refusal  # noqa: PLC0415

    async def guard(request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        peer = request.transport.get_extra_info("peername") if request.transport else None
        why = refusal(request.headers)
        if why or not is_ours(peer):
            return web.Response(text=f"{why or 'this page is for the user who started ttm-top'}\n", status=403)
        return await handler(request)

    server = Server(
        shlex.join(command),
        host="127.0.0.1",
        port=port,
        title=f"ttm-top {mount}",
        templates_path=TEMPLATES,
    )
    made = server._make_app

    async def guarded() -> Any:
        app = await made()
        app.middlewares.append(web.middleware(guard))
        return app

    async def started(_app: Any) -> None:
        click.echo(f"ttm-top: http://127.0.0.1:{port}/")

    for name, value in (
        ("_make_app", guarded),
        ("on_startup", started),
        ("initialize_logging", lambda: None),
    ):
        setattr(server, name, value)
    try:
        server.serve()
    except OSError as error:
        raise MountError(f"127.0.0.1:{port}: {error.strerror}; --port says another one") from None
    sys.stdout.flush()
