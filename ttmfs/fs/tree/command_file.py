"""A command file that shows what is set when it is read, not the help of its command."""

from collections.abc import Callable

from ttmfs.fs.commands.command import Command, Target
from ttmfs.fs.commands.handles import CommandHandle
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import Rights
from ttmfs.fs.tree.nodes import Handle, VirtualFile


def command_file(
    runner: Runner,
    command: Command,
    text: Callable[[], str],
    rights: Rights,
    *,
    name: str | None = None,
    target: Target | None = None,
) -> VirtualFile:
    """It says `text`, and runs what is written to it; a `target` that the command is told has that name in messages."""

    def open_handle(opening: Opening) -> Handle:
        return CommandHandle(
            text, lambda data: runner.run(command, name, target, data, opening), opening, runner.results
        )

    return VirtualFile(open_handle, rights, writable=True)
