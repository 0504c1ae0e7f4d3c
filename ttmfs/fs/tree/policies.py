"""The nodes of policies/: who is in office for eviction, prefetch and promotion, and how they do.

A policy is code: only the mount's owner and root look at this folder's files and write them. Writes run as command
files do, bounded, interruptible, answered with a line of JSON; what fails, and who is ejected, is in error_log.
"""

import errno
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from ttmfs.driver.policies import available_text
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.commands.handles import CommandHandle, CommandOutcome, TextHandle
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import Owner
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.nodes import Handle, Lengths, Node, VirtualDir, VirtualFile
from ttmfs.fs.tree.slow_text import slow_file
from ttmfs.policy.api import BASES, Kind
from ttmfs.policy.seat import Ejection
from ttmfs.sync.offload import in_thread

POLICIES: Final = "policies"
"""The name of the folder."""


def _command(kind: Kind) -> Command:
    async def run(machine: Machine, words: list[str]) -> Result:
        policies = machine.vdev.policies
        region, spec = policies.parse(kind, words)
        prepared = await in_thread(policies.prepare, spec, abandon_on_cancel=True)
        await policies.choose(kind, region, prepared)
        stats = policies.stats()[kind]
        # A group to which the region's order is given back has none.
        found = stats.get(region, {}) if kind == "evict" else stats
        return {"policy": found.get("name", spec.name)}

    where = "[GROUP:]REGION " if kind == "evict" else ""
    return Command(f"{POLICIES}/{kind}", f"{where}NAME [key=value…]", "", (), run)


_COMMANDS: Final = {kind: _command(kind) for kind in BASES}


class PolicyTree:
    """Builds them for one mount, whose `owner` is the mounting user."""

    def __init__(self, machine: Machine, runner: Runner, lengths: Lengths, owner: Owner) -> None:
        self._policies = machine.vdev.policies
        self._policies.owner = owner.uid
        self._policies.report = self._ejected
        self._runner = runner
        self._lengths = lengths
        self._owner = owner
        names = FixedNames(("available", "stats", *_COMMANDS))
        self.root = VirtualDir(POLICIES, self._find, names, owner.public(0o555), stays=True)

    def _ejected(self, ejection: Ejection) -> None:
        where = f"{POLICIES}/{ejection.kind} {ejection.region}".strip()
        self._runner.error_log.add(where, TtmError(errno.ECANCELED, str(ejection)))

    def _find(self, name: str) -> Node | None:
        if name == "available":
            return slow_file(self._available, self._owner.public(), self._lengths)
        if name == "stats":
            return VirtualFile(lambda _opening: TextHandle(self._stats), self._owner.only(0o400))
        command = next((command for kind, command in _COMMANDS.items() if kind == name), None)
        if command is None:
            return None
        text = next(partial(self._policies.text, kind) for kind in _COMMANDS if kind == name)
        return VirtualFile(partial(self._open, command, text), self._owner.only(0o600), writable=True)

    def _open(self, command: Command, text: Callable[[], str], opening: Opening) -> Handle:
        def run(data: bytes) -> Awaitable[CommandOutcome]:
            return self._runner.run(command, None, None, data, opening)

        return CommandHandle(text, run, opening, self._runner.results)

    async def _available(self) -> bytes:
        text = await in_thread(available_text)
        return text.encode()

    def _stats(self) -> str:
        return json.dumps(self._policies.stats()) + "\n"
