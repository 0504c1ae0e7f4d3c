"""`ttmfs metrics`, and what `ttmfs mount --metrics-listen` runs."""

import contextlib
import json
import os
import sys

import click

from ttmfs import mounts
from ttmfs.cli.common import fail, mountpoint_argument, say_where
from ttmfs.errors import TtmError
from ttmfs.metrics_process import COMMAND
from ttmfs.metrics_server import Server
from ttmfs.status import read_text


@click.command()
@mountpoint_argument
@click.option("--listen", metavar="HOST:PORT", help="Serve them over HTTP until the mount goes; port 0: any.")
def metrics(mountpoint: str | None, listen: str | None) -> None:
    """Print the metrics of the mount at MOUNTPOINT, or serve them to Prometheus. Without it: $TTMFS_MOUNT, or the only.

    Whoever can connect to HOST:PORT reads them, on 127.0.0.1 every user of this machine: they name regions, no BOs.

    \b
    ttmfs metrics --listen 127.0.0.1:9464 /tmp/gpu &
    curl http://127.0.0.1:9464/metrics
    """
    path = mounts.meant(mountpoint)
    mounts.connection(path)
    try:
        text = read_text(path, "metrics")
        if listen is None:
            click.echo(text, nl=False)
            return
        with contextlib.closing(Server(path, listen)) as server, contextlib.suppress(KeyboardInterrupt):
            say_where(path, server.url)
            server.serve()
    except OSError as error:
        fail(error)


@click.command(COMMAND, hidden=True)
@click.argument("mountpoint")
@click.argument("address")
def serve(mountpoint: str, address: str) -> None:
    """Listen on ADDRESS, say so or why not as a line of JSON, and serve from the next line of standard input on, which
    says that MOUNTPOINT is mounted, until that is gone."""
    try:
        server = Server(mountpoint, address)
    except TtmError as error:
        click.echo(json.dumps({"errno": error.errno, "error": error.message}))
        return
    with contextlib.closing(server):
        click.echo(json.dumps({"url": server.url}))
        if sys.stdin.readline():
            # Nobody who reads what the caller wrote must wait for this process.
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            server.serve()
