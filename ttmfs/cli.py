"""The command line: mount, umount, run, status, replay, doctor."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import click

import ttmfs
from ttmfs import logs, mounts
from ttmfs.device_options import checked_config, device_options
from ttmfs.errors import TtmError
from ttmfs.logs import LEVELS
from ttmfs.replay.command import replay

log = logging.getLogger(__name__)

def _fail(error: OSError) -> NoReturn:
    message = error.message if isinstance(error, TtmError) else str(error)
    raise click.ClickException(message) from None


class _Main(click.Group):
    """The commands, and `ttmfs SOURCE MNT -o ...`, which names none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        from ttmfs.fstab import is_asked_for  # noqa: PLC0415

        return super().parse_args(ctx, ["fstab", *args] if is_asked_for(args, self.commands) else args)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ttmfs.__version__)
def main() -> None:
    """The Linux kernel's TTM memory manager in user space, as a mounted file system.

    \b
    mkdir -p /tmp/gpu && ttmfs mount /tmp/gpu --vram 256M
    truncate -s 64M /tmp/gpu/bo/tex0
    echo "vram gtt" > /tmp/gpu/objects/tex0/validate
    cat /tmp/gpu/objects/tex0/status
    ttmfs status /tmp/gpu
    ttmfs umount /tmp/gpu

    The mount explains itself: cat /tmp/gpu/README, or any command file, as in cat /tmp/gpu/objects/tex0/validate.
    When a command fails, /tmp/gpu/error_log says why.

    Options of mount and run may stand in the environment (TTMFS_VRAM=64M) or in a file (--config, $TTMFS_CONFIG); the
    command line wins over the environment, that over the file. Completion, in the shell's start file:

    \b
    eval "$(_TTMFS_COMPLETE=bash_source ttmfs)"        or zsh_source; fish: _TTMFS_COMPLETE=fish_source ttmfs | source
    """


@main.command()
@click.argument("mountpoint")
@device_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("--log", "log_file", type=click.Path(), help="File for its messages. [default: the system's log]")
@click.option(
    "--log-level", type=click.Choice(LEVELS), help="Messages from this level on. [default: warning; info in a file]"
)
def mount(
    mountpoint: str, foreground: bool, log_file: str | None, log_level: str | None, **options: Any
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
    printf 'vram = "128M"\\nprefault = 16\\n' > dev.toml; ttmfs mount /tmp/gpu --config dev.toml
    """
    from ttmfs.fs.daemon import run_in_background  # noqa: PLC0415 - the other commands need no FUSE library
    from ttmfs.fs.mount import Mount, check_mountpoint  # noqa: PLC0415

    config = checked_config(options)

    def serve(ready: Callable[[], None]) -> None:
        logs.set_up(log_level, stderr=foreground or log_file is not None)
        log.info("ttmfs %s on %s: %s", ttmfs.__version__, path, config)
        Mount(path, config).run(ready)

    try:
        path = check_mountpoint(mountpoint)
        if foreground:
            serve(lambda: _say_ready(path))
        else:
            run_in_background(serve, os.path.abspath(log_file) if log_file else None)
    except OSError as error:
        _fail(error)


def _say_ready(path: str) -> None:
    from ttmfs.service import notify  # noqa: PLC0415

    click.echo(f"ttmfs: {path} is ready", err=True)
    notify("READY=1")


_mountpoint = click.argument("mountpoint", required=False, shell_complete=mounts.complete)


@main.command()
@_mountpoint
@click.option("--force", is_flag=True, help="Abort whoever uses it and detach it: dirty client pages are lost.")
def umount(mountpoint: str | None, force: bool) -> None:
    """Take the mount at MOUNTPOINT down; all BOs are gone with it. Without MOUNTPOINT: $TTMFS_MOUNT, or the only one.

    Busy (somebody has a file open, or stands inside) is an error that says who. --force does not ask: their next
    access fails. It also frees a mount whose daemon does not answer.
    """
    from ttmfs.fs.kernel import tuning  # noqa: PLC0415

    path = mounts.meant(mountpoint)
    connection = mounts.connection(path)
    if force:
        problem = tuning.abort_connection(connection)
        problem = tuning.lazy_unmount(path) or problem
        if problem:
            raise click.ClickException(problem)
        return
    problem = tuning.unmount(path)
    if problem:
        below = [other for other in tuning.all_mountpoints() if other.startswith(f"{path}/")]
        if below:
            there = " ".join(below)
            raise click.ClickException(f"{path} is busy: another mount is below it ({there}): take that down first")
        raise click.ClickException(f"{problem}{_who_uses(path)}")


def _who_uses(path: str) -> str:
    """The processes that keep a mount busy, and what can be done."""
    from ttmfs.fs.kernel import busy  # noqa: PLC0415

    lines = [f"\n  {user}" for user in busy.users_of(path)]
    text = "\nUsed by:" + "".join(lines) if lines else ""
    return f"{text}\n`ttmfs umount --force {path}` takes it down anyway; what clients have not written back is lost."


class _Run(click.Command):
    """`ttmfs run`, whose own failures, wrong options included, have a status that is not COMMAND's."""

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """As click does."""
        with _own_failures():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does."""
        with _own_failures():
            return super().invoke(ctx)


@contextlib.contextmanager
def _own_failures() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        error.exit_code = 125  # type: ignore[misc]
        raise


@main.command(cls=_Run, context_settings={"allow_interspersed_args": False})
@device_options
@click.option("--keep", type=click.Path(file_okay=False), help="Folder that gets error_log, stats, trace, maps.")
@click.option("--trace", "events", metavar="EVENTS", help="Record these, as ctl/trace does: 'evict move_end'; all.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context, /, command: tuple[str, ...], keep: str | None, events: str | None, **options: Any
) -> None:
    """Mount a temporary device, run COMMAND with TTMFS_MOUNT set, unmount; the status is COMMAND's.

    When COMMAND fails, the last lines of the device's error_log follow on standard error. Status 125: ttmfs itself has
    failed (nothing could be mounted, an option is wrong); 126: COMMAND cannot be run; 127: it is not there.

    Signals: ^C is COMMAND's own business, TERM and HUP are handed on to it. A process that COMMAND leaves behind
    inside the mount loses it.

    \b
    ttmfs run --vram 128M -- sh -c 'cp /bin/ls $TTMFS_MOUNT/bo/x; cat $TTMFS_MOUNT/objects/x/status'
    ttmfs run --keep out --trace all -- ./my-test       out/ has what the device knew at the end
    """
    config = checked_config(options)
    from ttmfs import run as running  # noqa: PLC0415 - the other commands need no FUSE library

    try:
        code = running.run(command, config, keep, events)
    except OSError as error:
        _fail(error)
    sys.exit(code)


@main.command(hidden=True)
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
    from ttmfs.fstab import mount_words, split_options  # noqa: PLC0415

    words = mount_words((part for text in options for part in split_options(text)), mount)
    with mount.make_context("mount", [*words, "--source", source, "--", mountpoint], parent=ctx.parent) as inner:
        mount.invoke(inner)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_mounts(as_json: bool) -> None:
    """List the ttmfs mounts: mount point, source, FUSE connection. Exit status 1 when there is none."""
    found = list(mounts.rows())
    for path, source, connection in found:
        if as_json:
            click.echo(json.dumps({"mountpoint": path, "source": source, "connection": connection}))
        else:
            click.echo(f"{path}\t{source}\t{connection}")
    sys.exit(0 if found else 1)


@main.command()
@_mountpoint
@click.option("--json", "as_json", is_flag=True, help="The whole `stats` object.")
def status(mountpoint: str | None, as_json: bool) -> None:
    """Show the regions, requests and moves of the mount at MOUNTPOINT. Without it: $TTMFS_MOUNT, or the only one."""
    from ttmfs.status import read_text, show  # noqa: PLC0415 - it loads what draws tables

    path = mounts.meant(mountpoint)
    mounts.connection(path)
    try:
        text = read_text(path, "stats")
    except TtmError as error:
        _fail(error)
    if as_json:
        click.echo(text, nl=False)
    else:
        show(text)


@main.command()
@_mountpoint
@click.option("--listen", metavar="HOST:PORT", help="Serve them over HTTP until the mount goes; port 0: any.")
def metrics(mountpoint: str | None, listen: str | None) -> None:
    """Print the metrics of the mount at MOUNTPOINT, or serve them to Prometheus. Without it: $TTMFS_MOUNT, or the only.

    Whoever can connect to HOST:PORT reads them, on 127.0.0.1 every user of this machine: they name regions, no BOs.

    \b
    ttmfs metrics --listen 127.0.0.1:9464 /tmp/gpu &
    curl http://127.0.0.1:9464/metrics
    """
    from ttmfs.metrics_server import Server  # noqa: PLC0415 - it loads what serves
    from ttmfs.status import read_text  # noqa: PLC0415

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
        _fail(error)


@main.command(hidden=True)
def batch() -> None:
    """Run commands from standard input: a line is a JSON list of words, as in ["mount", "/tmp/gpu"]; each is answered
    by a line {"status": EXIT STATUS, "said": WHAT IT PRINTED}. Ends when standard input does.

    It has everything loaded and forks for each command: a mount is ready in a tenth of a second.
    """
    from ttmfs.batch import serve  # noqa: PLC0415 - it loads everything

    serve(lambda words: main.main(words, prog_name="ttmfs"))


main.add_command(replay)


@main.command()
def doctor() -> None:
    """Say what this machine lacks, and the command that mends it.

    One line a check: ok, loses (works without, and what is lost), missing (will not work). Exit status 1 when
    something is missing. Run it as the user who mounts: without root it says what that costs.
    """
    from ttmfs.doctor import examine  # noqa: PLC0415

    worst = 0
    for finding in examine():
        click.echo(f"{finding.level:7} {finding.what}")
        if finding.mend:
            click.echo(f"        {finding.mend}")
        worst = max(worst, finding.severity)
    sys.exit(1 if worst >= 2 else 0)
