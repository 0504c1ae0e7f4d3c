"""The command line: mount, umount, run, status, doctor."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.table import Table

import ttmfs
from ttmfs.driver.config import Config, Region
from ttmfs.errors import TtmError
from ttmfs.units import format_size, parse_size


class SizeType(click.ParamType[int]):
    """`256M`, `1G`, `0x1000`, or bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except TtmError as error:
            self.fail(error.message, param, ctx)


class RegionType(click.ParamType[Region]):
    """`NAME=SIZE:buddy|range`."""

    name = "region"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        """A Region."""
        if isinstance(value, Region):
            return value
        name, _, rest = str(value).partition("=")
        size, _, manager = rest.partition(":")
        if not (name.isidentifier() and size and manager in ("", "buddy", "range")):
            self.fail(f"{value!r}: say NAME=SIZE:buddy or NAME=SIZE:range, as in stolen=16M:range", param, ctx)
        try:
            return Region(name, parse_size(size), manager or "buddy")
        except TtmError as error:
            self.fail(error.message, param, ctx)


SIZE = SizeType()


def _option(*names: str, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(*names, show_default=True, **how)


_DEVICE_OPTIONS = [
    _option("--vram", type=SIZE, default="256M", help="Memory of the device."),
    _option("--visible-vram", type=SIZE, default=None, help="Part of vram that the CPU can reach. [default: all]"),
    _option("--gtt", type=SIZE, default="512M", help="Address space through which the device reaches system pages."),
    _option("--region", "regions", type=RegionType(), multiple=True, help="One more region: NAME=SIZE:buddy|range."),
    _option("--memory", type=SIZE, default="1G", help="System memory of this device: hard, and it fragments."),
    _option("--pool-limit", type=SIZE, default="64M", help="Freed pages kept ready by the pool."),
    _option("--beneficial-order", type=click.IntRange(0, 10), default=9, help="Page order worth having (0: off)."),
    _option("--copy-engines", type=click.IntRange(1, 16), default=1, help="Engines that copy at the same time."),
    _option("--copy-bandwidth", type=SIZE, default="0", help="Simulated link, bytes per second (0: not simulated)."),
    _option("--copy-latency", type=float, default=0.0, help="Simulated latency of a copy, seconds."),
    _option("--sync-moves", is_flag=True, help="Wait for every copy inside the move (for comparison)."),
    _option("--placement", default="system", help="Where a new BO goes at its first use, as in 'vram gtt'."),
    _option("--prefault", type=click.IntRange(0, 1 << 20), default=256, help="Pages served around a fault."),
    _option("--fault-timeout", type=float, default=15.0, help="Seconds that a fault may wait."),
    _option("--command-timeout", type=float, default=60.0, help="Seconds that a command may take."),
    _option("--propagate-enospc", is_flag=True, help="A full region is ENOSPC, not ENOMEM."),
    _option("--allow-other", is_flag=True, help="Let other users in (file modes decide)."),
    _option("--stock-loop", is_flag=True, help="Use pyfuse3's own readiness wait."),
    _option("--watchdog", type=float, default=30.0, help="Seconds after which a wedged daemon is put down (0: never)."),
    _option("--config", "config_file", type=click.Path(exists=True, dir_okay=False), help="TOML file of options."),
]


def _device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_DEVICE_OPTIONS):
        command = option(command)
    return command


def _config(ctx: click.Context, options: dict[str, Any]) -> Config:
    """Options given on the command line win over the file, the file over the defaults."""
    path = options.pop("config_file", None)
    if path is not None:
        with open(path, "rb") as file:
            try:
                table = tomllib.load(file)
            except tomllib.TOMLDecodeError as error:
                raise click.ClickException(f"{path}: {error}") from None
        _merge_file(ctx, path, table, options)
    return Config(**options)


def _merge_file(ctx: click.Context, path: str, table: dict[str, Any], options: dict[str, Any]) -> None:
    parameters = {param.name: param for param in ctx.command.params}
    for key, value in table.items():
        name = key.replace("-", "_")
        name = "regions" if name == "region" else name
        param = parameters.get(name)
        if param is None or name not in options:
            known = " ".join(sorted(options))
            raise click.ClickException(f"{path}: {key!r} is no mount option: say one of {known}")
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            continue
        options[name] = param.type_cast_value(ctx, value)


def _fail(error: OSError) -> NoReturn:
    message = error.message if isinstance(error, TtmError) else str(error)
    raise click.ClickException(message) from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ttmfs.__version__)
def main() -> None:
    """The Linux kernel's TTM memory manager in user space, as a mounted file system.

    \b
    mkdir -p /tmp/gpu && ttmfs mount /tmp/gpu --vram 256M
    truncate -s 64M /tmp/gpu/bo/tex0
    echo "vram gtt" > /tmp/gpu/objects/tex0/validate
    cat /tmp/gpu/objects/tex0/status
    ttmfs umount /tmp/gpu
    """


@main.command()
@click.argument("mountpoint")
@_device_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground and log to stderr.")
@click.option("--log", "log_file", type=click.Path(), help="File for the daemon's messages.")
@click.pass_context
def mount(ctx: click.Context, /, mountpoint: str, foreground: bool, log_file: str | None, **options: Any) -> None:
    """Mount a device at MOUNTPOINT (an empty directory) and go to the background when it is ready."""
    from ttmfs.fs.daemon import run_in_background  # noqa: PLC0415 - the other commands need no FUSE library
    from ttmfs.fs.mount import Mount, check_mountpoint  # noqa: PLC0415

    config = _config(ctx, options)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def serve(ready: Callable[[], None]) -> None:
        Mount(path, config).run(ready)

    try:
        path = check_mountpoint(mountpoint)
        if foreground:
            serve(lambda: click.echo(f"ttmfs: {path} is ready", err=True))
        else:
            run_in_background(serve, os.path.abspath(log_file) if log_file else None)
    except OSError as error:
        _fail(error)


@main.command()
@click.argument("mountpoint")
@click.option("--force", is_flag=True, help="Abort whoever uses it and detach it: dirty client pages are lost.")
def umount(mountpoint: str, force: bool) -> None:
    """Take the mount at MOUNTPOINT down."""
    from ttmfs.fs import tuning  # noqa: PLC0415

    path = os.path.abspath(mountpoint)
    try:
        connection = tuning.connection_number(path)
    except OSError:
        raise click.ClickException(f"{path} is no ttmfs mount") from None
    if force:
        problem = tuning.abort_connection(connection)
        problem = tuning.lazy_unmount(path) or problem
        if problem:
            raise click.ClickException(problem)
        return
    command = ["umount", path] if os.geteuid() == 0 else ["fusermount3", "-u", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(
            f"{done.stderr.strip()}\nIf it is busy, `fuser -vm {path}` says who uses it; --force takes it down anyway."
        )


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_device_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], **options: Any) -> None:
    """Mount a temporary device, run COMMAND with TTMFS_MOUNT set, unmount; the status is COMMAND's.

    \b
    ttmfs run --vram 128M -- sh -c 'cp /bin/ls $TTMFS_MOUNT/bo/x; cat $TTMFS_MOUNT/objects/x/status'
    """
    from ttmfs.fs.daemon import run_in_background  # noqa: PLC0415
    from ttmfs.fs.mount import Mount  # noqa: PLC0415

    config = _config(ctx, options)
    where = tempfile.mkdtemp(prefix="ttmfs-")
    try:
        run_in_background(lambda ready: Mount(where, config).run(ready), None)
    except OSError as error:
        os.rmdir(where)
        _fail(error)
    try:
        code = subprocess.run(command, env={**os.environ, "TTMFS_MOUNT": where}, check=False).returncode
    except OSError as error:
        click.echo(f"ttmfs: {command[0]}: {error.strerror}", err=True)
        code = 127
    finally:
        _take_down(where)
    sys.exit(code if code >= 0 else 128 - code)


def _take_down(where: str) -> None:
    """Unmount, by force if somebody still uses it."""
    from ttmfs.fs import tuning  # noqa: PLC0415

    command = ["umount", where] if os.geteuid() == 0 else ["fusermount3", "-u", where]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        with contextlib.suppress(OSError):
            tuning.abort_connection(tuning.connection_number(where))
        tuning.lazy_unmount(where)
    try:
        os.rmdir(where)
    except OSError as error:
        click.echo(f"ttmfs: {where} stays: {error.strerror}", err=True)


@main.command()
@click.argument("mountpoint")
@click.option("--json", "as_json", is_flag=True, help="The whole `stats` object.")
def status(mountpoint: str, as_json: bool) -> None:
    """Show the regions, requests and moves of the mount at MOUNTPOINT."""
    try:
        with open(os.path.join(mountpoint, "stats"), encoding="utf-8") as file:
            text = file.read()
        values = json.loads(text)
        regions = values["regions"]
    except (OSError, ValueError, KeyError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it has no stats"
        raise click.ClickException(f"{mountpoint} is no ttmfs mount: {reason}") from None
    if as_json:
        click.echo(text, nl=False)
        return
    console = Console()
    table = Table("region", "size", "used", "visible", "visible used", "BOs")
    for name, region in regions.items():
        sizes = [format_size(region[key]) for key in ("size", "used", "visible_size", "visible_used")]
        table.add_row(name, *sizes, str(region["bos"]))
    console.print(table)
    for part in ("bos", "pool", "faults", "requests", "moves", "fences"):
        plain = {key: value for key, value in values.get(part, {}).items() if not isinstance(value, list)}
        facts = "  ".join(f"{key} {value}" for key, value in plain.items())
        console.print(f"{part:9} {facts}", highlight=False)


@main.command()
def doctor() -> None:
    """Say what this machine lacks, and the command that mends it."""
    from ttmfs.doctor import examine  # noqa: PLC0415

    worst = 0
    for finding in examine():
        click.echo(f"{finding.level:7} {finding.what}")
        if finding.mend:
            click.echo(f"        {finding.mend}")
        worst = max(worst, finding.severity)
    sys.exit(1 if worst >= 2 else 0)


