"""`ttmfs mount`, and `ttmfs SOURCE MNT -o k=v,…` for mount(8)."""

import contextlib
import logging
import os
from collections.abc import Callable
from typing import Any

import click

import ttmfs
from ttmfs import logs
from ttmfs.cli.common import fail, say_where
from ttmfs.device_options import checked_config, device_options
from ttmfs.errors import TtmError
from ttmfs.fs.daemon import run_in_background
from ttmfs.fs.mount import Mount, check_mountpoint
from ttmfs.fstab import mount_words, split_options
from ttmfs.logs import LEVELS
from ttmfs.metrics_process import metrics_process, parse_address
from ttmfs.service import notify

log = logging.getLogger(__name__)


def _checked_address(_ctx: click.Context, _param: click.Parameter, address: str | None) -> str | None:
    try:
        if address is not None:
            parse_address(address)
    except TtmError as error:
        raise click.BadParameter(error.message) from None
    return address


@click.command()
@click.argument("mountpoint")
@device_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("--log", "log_file", type=click.Path(), help="File for its messages. [default: the system's log]")
@click.option(
    "--log-level", type=click.Choice(LEVELS), help="Messages from this level on. [default: warning; info in a file]"
)
@click.option(
    *("--metrics-listen", "address"),
    metavar="HOST:PORT",
    callback=_checked_address,
    help="Serve its metrics over HTTP too, as `ttmfs metrics --listen` does.",
)
def mount(
    mountpoint: str,
    foreground: bool,
    log_file: str | None,
    log_level: str | None,
    address: str | None,
    **options: Any,
) -> None:
    """Mount a device at MOUNTPOINT (an empty directory) and go to the background when it is ready.

    Sizes are bytes, or take K, M, G, T (binary). Exit status: 0 mounted, 1 it cannot be (the reason is printed; see
    also `ttmfs doctor`), 2 an option is wrong. `--config` reads the same options from a TOML file; the command line
    wins over it.

    \b
    ttmfs mount /tmp/gpu --vram 128M --visible-vram 32M     a small device with a smaller window
    ttmfs mount /tmp/gpu --region stolen=16M:range          one more region
    ttmfs mount /tmp/gpu --placement "vram gtt"             new BOs go to vram, else to gtt
    ttmfs mount /tmp/gpu --copy-bandwidth 1G --copy-latency 0.001
    ttmfs mount /tmp/gpu --metrics-listen 127.0.0.1:9464    for Prometheus
    printf 'vram = "128M"\\nprefault = 16\\n' > dev.toml; ttmfs mount /tmp/gpu --config dev.toml
    """
    config = checked_config(options)

    def serve(ready: Callable[[], None]) -> None:
        logs.set_up(log_level, stderr=foreground or log_file is not None)
        log.info("ttmfs %s on %s: %s", ttmfs.__version__, path, config)
        Mount(path, config).run(ready)

    try:
        path = check_mountpoint(mountpoint)
        with contextlib.ExitStack() as stack:
            mounted = _nothing
            if address is not None:
                url, mounted = stack.enter_context(metrics_process(path, address, stays=not foreground))
                say_where(path, url)
            if foreground:
                serve(lambda: _say_ready(path, mounted))
            else:
                run_in_background(serve, os.path.abspath(log_file) if log_file else None)
                mounted()
    except OSError as error:
        fail(error)


def _nothing() -> None:
    pass


def _say_ready(path: str, mounted: Callable[[], None]) -> None:
    mounted()
    click.echo(f"ttmfs: {path} is ready", err=True)
    notify("READY=1")


@click.command(hidden=True)
@click.argument("source")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True)
@click.pass_context
def fstab(ctx: click.Context, source: str, mountpoint: str, options: tuple[str, ...]) -> None:
    """What mount(8) calls as `ttmfs SOURCE MNT -o k=v,...`: mount a device and return when it is ready.

    The options are those of `ttmfs mount`; \\, is a comma in a value. Words of fstab for others (noauto, nofail, user,
    _netdev, x-...) are accepted; ro and what is no option are refused.

    \b
    mount -t fuse.ttmfs ttmfs /mnt/gpu -o vram=128M,allow_other
    ttmfs  /mnt/gpu  fuse.ttmfs  vram=128M,visible_vram=32M,noauto  0  0        in /etc/fstab
    """
    words = mount_words((part for text in options for part in split_options(text)), mount)
    with mount.make_context("mount", [*words, "--source", source, "--", mountpoint], parent=ctx.parent) as inner:
        mount.invoke(inner)
