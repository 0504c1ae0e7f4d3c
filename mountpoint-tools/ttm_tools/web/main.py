"""ttm-web: a page that shows a mount live, served on 127.0.0.1."""

import asyncio
import contextlib
import secrets
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable

import click

from ttm_tools.device import Device
from ttm_tools.errors import FAILED, MountError
from ttm_tools.extras import needed
from ttm_tools.mounts import find_mount
from ttm_tools.options import HELP, completion_help, mount_argument, version_option, with_errors
from ttm_tools.web.events import DEFAULT


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1; port 0 is one that is free. MountError when it is taken."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind(("127.0.0.1", port))
        server.listen(64)
    except OSError as error:
        server.close()
        raise MountError(f"127.0.0.1:{port}: {error.strerror}; --port 0 takes one that is free", FAILED) from None
    return server


async def serve(
    mount: str, server: socket.socket, interval: float, token: str | None, events: str, ready: Callable[[], None]
) -> str:
    """Serve until a signal, or until the mount is gone: then why."""
    # Not for --help and completion.
    with needed("ttm-web", "starlette and uvicorn", "web"):
        import uvicorn  # noqa: PLC0415

        from ttm_tools.web.app import Page  # noqa: PLC0415
    from ttm_tools.web.sampler import Sampler  # noqa: PLC0415
    from ttm_tools.web.state import State  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    state = State()
    with Device(mount, read_seconds=5.0) as device, Device(mount) as reader, Device(mount) as commander:

        def changed() -> None:
            def tell() -> None:
                page.changed()
                if state.ended:
                    stop()

            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(tell)

        sampler = Sampler(device, state, changed, interval, events)
        page = Page(state, reader, commander, sampler.watch, token, interval)
        config = uvicorn.Config(
            page.application(),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
        )
        http = uvicorn.Server(config)
        # Signals are this program's: it has to close its streams first.
        setattr(http, "capture_signals", contextlib.nullcontext)  # noqa: B010 - not for mypy's eyes

        def stop() -> None:
            page.close()
            http.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        sampler.start()
        try:
            ready()
            await http.serve([server])
        finally:
            sampler.stop()
    return state.ended


@click.command(context_settings=HELP, epilog=completion_help("ttm-web"))
@mount_argument
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: one that is free.")
@click.option("--open", "open_", is_flag=True, help="Open the page in the browser.")
@click.option("--allow-commands", is_flag=True, help="Let the page move, pin, defrag..., and set policies and limits.")
@click.option("--interval", type=click.FloatRange(0.1, 60), default=0.5, show_default=True, help="Seconds.")
@click.option(
    "--events", default=DEFAULT, metavar="WORDS", help="Recorded while a page is open; '': none. [default: what moves]"
)
@version_option
@with_errors
def main(mount: str | None, port: int, open_: bool, allow_commands: bool, interval: float, events: str) -> None:
    """Serve a page that shows a ttmfs mount live: who has which pages of each region, BOs, rates, latencies, events.

    The address is printed; ^C ends it. Only processes of this user, on this machine, are answered. For a mount on
    another machine: `ssh -L 8000:127.0.0.1:8000 HOST ttm-web MNT --port 8000`.

    Without --allow-commands the page only looks. With it the address has a token, and whoever has that address can
    steer the mount. While a page is open the events of --events are recorded, if nobody else records any.

    \b
    ttm-web --open
    ttm-web /tmp/gpu --port 8000 --allow-commands
    """
    where = find_mount(mount)
    token = secrets.token_urlsafe(24) if allow_commands else None
    with listen(port) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/" + (f"#token={token}" if token else "")

        def announce() -> None:
            click.echo(f"ttm-web: {url}")
            if open_:
                webbrowser.open(url)

        ended = asyncio.run(serve(where, server, interval, token, events, announce))
    if ended:
        click.echo(f"Error: {ended}", err=True)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
