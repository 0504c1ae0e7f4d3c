"""The command line: `ttmfs` and its commands, each a module that is loaded when somebody asks for its command.

So `ttmfs --version`, `--help` and the shell's completion wait for no FUSE library, no numpy and no tables, and
`ttmfs doctor` runs where those are missing. A command's module imports at its top what the command needs.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import click

import ttmfs
from ttmfs.fstab import is_asked_for

_HELP: Final[dict[str, Any]] = {"help_option_names": ["-h", "--help"]}
_BLAS_THREADS: Final = "OPENBLAS_NUM_THREADS"


@contextmanager
def _without_blas_threads() -> Iterator[None]:
    """The BLAS that comes with numpy starts none: nobody calls it, and each spins for 50 ms before it sleeps."""
    if _BLAS_THREADS in os.environ:
        yield
        return
    os.environ[_BLAS_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_BLAS_THREADS]


def _load_module(name: str) -> ModuleType:
    """A module. What it loads stays: the collector of garbage neither looks meanwhile, a sixth of the time, nor ever
    at what was loaded, which would be when it goes on and again when the command ends."""
    if name in sys.modules:
        return sys.modules[name]
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _without_blas_threads():
            return import_module(name)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


class Command(click.Command):
    """A command by its name and what `ttmfs --help` says of it; the rest is loaded when it is used."""

    def __init__(self, name: str, where: str, does: str) -> None:
        super().__init__(name, help=does, hidden=not does)
        self.where = where

    def load(self) -> click.Command:
        """The command itself, with its options. ImportError when a library that it needs is missing."""
        module, name = self.where.split(":")
        command = getattr(_load_module(module), name)
        assert isinstance(command, click.Command)
        # A command keeps the help option that it made first: without its group it would never know the short one.
        command.context_settings.update(_HELP)
        return command

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """That of the command itself, which click then runs."""
        return self.load().make_context(*arguments, **more)


COMMANDS: Final = (
    Command(
        *("mount", "ttmfs.cli.mount:mount"),
        "Mount a device at MOUNTPOINT (an empty directory) and go to the background when it is ready.",
    ),
    Command("umount", "ttmfs.cli.umount:umount", "Take the mount at MOUNTPOINT down; all BOs are gone with it."),
    Command("run", "ttmfs.cli.run:run", "Mount a temporary device, run COMMAND with TTMFS_MOUNT set, unmount."),
    Command("fstab", "ttmfs.cli.mount:fstab", ""),
    Command("list", "ttmfs.cli.look:list_mounts", "List the ttmfs mounts: mount point, source, FUSE connection."),
    Command("status", "ttmfs.cli.look:status", "Show the regions, requests and moves of the mount at MOUNTPOINT."),
    Command(
        *("metrics", "ttmfs.cli.metrics:metrics"),
        "Print the metrics of the mount at MOUNTPOINT, or serve them to Prometheus.",
    ),
    Command("serve-metrics", "ttmfs.cli.metrics:serve", ""),
    Command("batch", "ttmfs.cli.batch:batch", ""),
    Command(
        *("replay", "ttmfs.replay.command:replay"),
        "Run recorded traces through eviction and prefetch policies, without a mount, and compare.",
    ),
    Command("doctor", "ttmfs.cli.doctor:doctor", "Say what this machine lacks, and the command that mends it."),
)
"""All of them. What it says nothing of is hidden: other programs call it."""


def load(name: str) -> click.Command:
    """A command itself, with its options. KeyError when there is none of that name."""
    return {entry.name: entry for entry in COMMANDS}[name].load()


class _Main(click.Group):
    """The commands, and `ttmfs SOURCE MNT -o ...`, which names none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        return super().parse_args(ctx, ["fstab", *args] if is_asked_for(args, self.commands) else args)


@click.group(cls=_Main, commands=COMMANDS, context_settings=_HELP)
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
