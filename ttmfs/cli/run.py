"""`ttmfs run`: a device for the time of one command."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.shell_completion import CompletionItem

from ttmfs import run as running
from ttmfs.cli.common import fail
from ttmfs.device_options import checked_config, device_options
from ttmfs.observe.points import EVENTS


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
        # Not by assignment: for some versions of click it is an attribute of the class only.
        vars(error)["exit_code"] = 125
        raise


def complete_events(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of events for the shell, after those that stand there already."""
    before, blank, begun = incomplete.rpartition(" ")
    rows = {"all": "Every event.", **EVENTS}
    return [CompletionItem(before + blank + name, help=does) for name, does in rows.items() if name.startswith(begun)]


@click.command(cls=_Run, context_settings={"allow_interspersed_args": False})
@device_options
@click.option("--keep", type=click.Path(file_okay=False), help="Folder that gets error_log, stats, trace, maps.")
@click.option(
    *("--trace", "events"),
    metavar="EVENTS",
    shell_complete=complete_events,
    help="Record these, as ctl/trace does: 'evict move_end'; all.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], keep: str | None, events: str | None, **options: Any) -> None:
    """Mount a temporary device, run COMMAND with TTMFS_MOUNT set, unmount.

    The exit status is COMMAND's. When it fails, the last lines of the device's error_log follow on standard error.
    Status 125: ttmfs itself has failed (nothing could be mounted, an option is wrong); 126: COMMAND cannot be run; 127:
    it is not there.

    Signals: ^C is COMMAND's own business, TERM and HUP are handed on to it. A process that COMMAND leaves behind
    inside the mount loses it.

    \b
    ttmfs run --vram 128M -- sh -c 'cp /bin/ls $TTMFS_MOUNT/bo/x; cat $TTMFS_MOUNT/objects/x/status'
    ttmfs run --keep out --trace all -- ./my-test       out/ has what the device knew at the end
    """
    config = checked_config(options)
    try:
        code = running.run(command, config, keep, events)
    except OSError as error:
        fail(error)
    sys.exit(code)
