"""What the five command lines have in common: which mount, errors as one line, completion."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.mounts import VARIABLE, find_mount, ttmfs_mounts
from ttm_tools.version import __version__

HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

COMPLETION_SECONDS: Final = 2.0
"""A shell must not wait for a mount that hangs."""


def completion_help(program: str) -> str:
    """The end of each --help: which mount is meant, and how to switch completion on."""
    variable = program.upper().replace("-", "_")
    return (
        f"MNT is the mount point; without it ${VARIABLE}, or the only ttmfs mount there is. Exit status: 0, 1 (the "
        "device could not do it, hangs, or has ended), 2 (MNT is no ttmfs mount, or an option is wrong).\n\n"
        "\b\nCompletion of mounts and BO names: one of these lines in the shell's start file.\n"
        f'  bash: eval "$(_{variable}_COMPLETE=bash_source {program})"\n'
        f'  zsh:  eval "$(_{variable}_COMPLETE=zsh_source {program})"\n'
        f"  fish: _{variable}_COMPLETE=fish_source {program} | source"
    )


def complete_mount(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """ttmfs mount points."""
    return [CompletionItem(path) for path in ttmfs_mounts() if path.startswith(incomplete)]


def complete_bo(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of BOs of the mount that the line names."""
    try:
        with Device(find_mount(_named_mount(ctx)), read_seconds=COMPLETION_SECONDS) as device:
            return [CompletionItem(name) for name in device.names() if name.startswith(incomplete)]
    except (MountError, OSError):
        return []


def complete_mount_or_bo(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For words that may be either."""
    return complete_mount(ctx, param, incomplete) + complete_bo(ctx, param, incomplete)


def complete_event(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of events, with what they say, from the table that ctl/trace shows."""
    try:
        with Device(find_mount(_named_mount(ctx)), read_seconds=COMPLETION_SECONDS) as device:
            lines = device.text("ctl/trace").splitlines()
    except (MountError, OSError):
        return []
    table = [line.removeprefix("# ").split("\t", 1) for line in lines if line.startswith("# ") and "\t" in line]
    return [CompletionItem(name, help=does) for name, does in table if name.startswith(incomplete)]


def _named_mount(ctx: click.Context) -> str | None:
    where: click.Context | None = ctx
    while where is not None:
        named = where.params.get("mount")
        if isinstance(named, str):
            return named
        words = where.params.get("words") or ()
        mounts = ttmfs_mounts()
        for word in words if isinstance(words, tuple) else (words,):
            if os.path.abspath(word) in mounts:
                return str(word)
        where = where.parent
    return None


def mount_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`-m MNT`."""
    return click.option(
        "-m", "--mount", metavar="MNT", shell_complete=complete_mount, help=f"The mount point [default: ${VARIABLE}]."
    )(command)


def mount_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """`[MNT]`."""
    return click.argument("mount", metavar="[MNT]", required=False, shell_complete=complete_mount)(command)


def version_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--version`."""
    return click.version_option(__version__)(command)


def with_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """MountError and OSError of a command become one line and a status; a closed output ends it quietly."""

    @functools.wraps(command)
    def guarded(*arguments: Any, **options: Any) -> Any:
        try:
            result = command(*arguments, **options)
            sys.stdout.flush()
            return result
        except MountError as error:
            click.echo(f"Error: {error.message}", err=True)
            sys.exit(error.status)
        except BrokenPipeError:
            # `ttm-ls | head`: end as a program does that the signal ends, and leave nothing to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.exit(128 + signal.SIGPIPE)
        except OSError as error:
            raise click.ClickException(_sentence(error)) from None

    return guarded


def _sentence(error: OSError) -> str:
    """Without the number, which says nothing to people."""
    if error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
