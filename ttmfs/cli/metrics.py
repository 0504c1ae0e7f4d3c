"""`ttmfs metrics`."""

import contextlib

import click

from ttmfs import mounts
from ttmfs.cli.common import fail, mountpoint_argument
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
            click.echo(f"ttmfs: the metrics of {path} are at {server.url}", err=True)
            server.serve()
    except OSError as error:
        fail(error)
