"""svm_objects/: one directory per address space, with its commands, its tables and its state."""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ttmfs.fs.commands.command import Command
from ttmfs.fs.commands.handles import CommandHandle, TextHandle
from ttmfs.fs.commands.quoting import escape, for_shell
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.spaces import SPACE_COMMANDS, OpenedSpace
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import READ, CommandOf, FolderOf, ObjectOf, QuestionOf, ReadersOf, may
from ttmfs.fs.tree.attributes import status_text
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.mirrors import FolderNames, entry_key, folder_key
from ttmfs.fs.tree.nodes import Handle, Lengths, Node, VirtualDir, VirtualFile
from ttmfs.fs.tree.slow_text import paced_lines, slow_file
from ttmfs.fs.tree.snapshot import SnapshotHandle
from ttmfs.svm.names import SpaceFile, SpaceNames
from ttmfs.svm.space import AddressSpace
from ttmfs.svm.tables import RANGES_HEAD, counts, notifiers_text, range_row

READ_FILES: Final = ("notifiers", "ranges", "snapshot", "stats", "status", "status.json")


class SvmTree:
    """Builds the nodes below svm_objects/."""

    def __init__(self, spaces: SpaceNames, runner: Runner) -> None:
        self.spaces = spaces
        self.page_cache: PageCache | None = None
        self.runner = runner
        self.root = VirtualDir(
            folder_key(spaces.root), self._find_space, FolderNames(spaces.root), FolderOf(spaces.root), stays=True
        )
        self._lengths = Lengths()
        self._names = FixedNames((*SPACE_COMMANDS, *READ_FILES))

    def _find_space(self, name: str) -> Node | None:
        raw = os.fsencode(name)
        file = self.spaces.root.get(raw)
        if not isinstance(file, SpaceFile):
            return None
        space_file = file
        return VirtualDir(
            entry_key(file, self.spaces.root, raw),
            lambda leaf: self._find_file(space_file, leaf),
            self._names,
            ObjectOf(file),
        )

    def _find_file(self, file: SpaceFile, name: str) -> Node | None:
        command = SPACE_COMMANDS.get(name)
        if command is not None:
            return self._command(command, file)
        space = file.space
        if name == "ranges":
            return slow_file(lambda: _ranges(space), ReadersOf(file), self._lengths)
        if name == "snapshot":
            return VirtualFile(lambda _opening: SnapshotHandle(space), ReadersOf(file))
        texts: dict[str, Callable[[], str]] = {
            "notifiers": partial(notifiers_text, space),
            "stats": space.stats_text,
            "status": lambda: status_text(status(file)),
            "status.json": lambda: json.dumps(status(file)) + "\n",
        }
        text = texts.get(name)
        return None if text is None else VirtualFile(lambda _opening: TextHandle(text), ReadersOf(file))

    def _command(self, command: Command, file: SpaceFile) -> VirtualFile:
        def open_handle(opening: Opening) -> Handle:
            name = file.space.name
            opened = OpenedSpace(file, self.page_cache, may_read=may(opening, file, READ))
            return CommandHandle(
                lambda: command.help(for_shell(f"svm_objects/{name}/{command.name}")),
                lambda data: self.runner.run(command, f"svm/{name}", opened, data, opening),
                opening,
                self.runner.results,
            )

        rights = QuestionOf(file) if command.asks else CommandOf(file)
        return VirtualFile(open_handle, rights, writable=True)


async def _ranges(space: AddressSpace) -> bytes:
    """The table, made a few rows at a time: there may be one for every page of memory."""
    rows = await paced_lines(list(space.table.ranges.values()), lambda found: range_row(space, found, escape))
    return RANGES_HEAD.encode() + rows


def status(file: SpaceFile) -> dict[str, Any]:
    """Everything there is to say about one space. Size is bytes, `*_pages` pages."""
    space = file.space
    return {
        "name": space.name,
        "size": space.size,
        "populated_pages": space.num_blocks() - space.stored_pages,
        **counts(space),
        "opens": file.opens,
        "group": space.group.live.path,
        "last_error": file.last_error,
    }
