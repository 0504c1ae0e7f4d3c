"""The nodes of what this device shows of itself besides its BOs: traces, metrics, clients/, debugfs and sysfs files.

Reading any of them changes nothing; what does something is written.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

from ttmfs.driver import calls
from ttmfs.driver.clients import Client, Clients
from ttmfs.driver.entries import FIRST_NUMBER
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.commands.handles import TextHandle
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.kernel.rights import Fixed, Owner, Rights
from ttmfs.fs.tree.fdinfo import client_text, gem_info, mem_info
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.metrics import Exporter
from ttmfs.fs.tree.nodes import Lengths, Node, VirtualDir, VirtualFile
from ttmfs.fs.tree.peek import VramHandle
from ttmfs.fs.tree.region_texts import eviction_fences_text, lru_text, map_text
from ttmfs.fs.tree.slow_text import SlowText, bounded, paced_lines, slow_file, trigger_file
from ttmfs.fs.tree.trace_pipe import PipeFile, TracePipe
from ttmfs.observe.recorder import Entry
from ttmfs.observe.trace import Event
from ttmfs.svm.spaces import Svm
from ttmfs.sync.offload import in_thread
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.placement import VRAM
from ttmfs.ttm.resource import ResourceManager

SHRINK_BATCH: Final = 352
"""Pages that one ttm/page_pool_shrink asks for (the kernel's batch)."""

CLIENTS_KEY: Final = "clients"
"""The key of clients/."""
REGION_FILES: Final = ("fences", "lru", "map")
_TTM_FILES: Final = ("buffer_objects", "page_pool", "page_pool_shrink", "tt_shrink")


class _ClientNames:
    """The files of clients/, by the ids of the clients."""

    folders = 0

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    @property
    def last(self) -> int:
        """The youngest client's."""
        return FIRST_NUMBER + max(client.id for client in self._clients)

    def after(self, number: int) -> Iterator[tuple[int, str]]:
        """Oldest first."""
        for client in sorted(self._clients, key=lambda client: client.id):
            if FIRST_NUMBER + client.id > number:
                yield FIRST_NUMBER + client.id, client.file_name


class ObserveTree:
    """Builds them. `stats` makes the stats object, `lengths` are those of dear texts, `owner` is the mounting user:
    what names BOs is theirs."""

    def __init__(
        self,
        machine: Machine,
        runner: Runner,
        svm: Svm,
        stats: Callable[[], Awaitable[Mapping[str, Any]]],
        lengths: Lengths,
        owner: Owner,
    ) -> None:
        self.machine = machine
        self.svm = svm
        self.runner = runner
        self.lengths = lengths
        self.owner = owner
        trace = machine.vdev.ttm.trace
        self.pipe = TracePipe(trace)
        self._stats = stats
        self._slow: dict[str, tuple[SlowText, Rights]] = {
            "trace": (self._trace_text, owner.only(0o400)),
            "trace.json": (self._trace_json, owner.only(0o400)),
            "metrics": (self._metrics, owner.public()),
        }
        self._texts = mem_info(machine.vdev)
        self.files = ("trace_pipe", *self._slow, *self._texts)
        """Its files in the mount's root."""
        self.clients = VirtualDir(
            CLIENTS_KEY, self._find_client, _ClientNames(machine.names.clients), owner.public(0o555), stays=True
        )
        ttm_names = FixedNames(_TTM_FILES)
        self._ttm = VirtualDir("debug/ttm", self._find_ttm, ttm_names, owner.only(0o500), stays=True)
        self._managers = {
            "vram0_mm" if name == VRAM else f"{name}_mm": manager for name, manager in machine.vdev.ttm.managers.items()
        }
        vram = machine.vdev.ttm.managers.get(VRAM)
        self._vram = None if vram is None else vram.arena
        own = ("vram",) if self._vram is not None else ()
        self.debug_files = ("gem_info", "recorder", *own, *self._managers)
        """Its files in debug/, beside the folder `ttm`."""
        self._pool_shrink = "0/0\n"
        self._tt_shrink = "0\n"

    def close(self) -> None:
        """The mount goes down: nobody waits for an event any more."""
        self.pipe.close()

    def _private(self, text: Callable[[], str | bytes]) -> VirtualFile:
        """A text for the owner."""
        return VirtualFile(lambda _opening: TextHandle(text), self.owner.only(0o400))

    # -- the root ------------------------------------------------------------------------------------------------

    def find(self, name: str) -> Node | None:
        """A file of the mount's root."""
        if name == "trace_pipe":
            return PipeFile(self.pipe, self.owner.only(0o400))
        slow = self._slow.get(name)
        if slow is not None:
            return slow_file(*slow, self.lengths)
        text = self._texts.get(name)
        return None if text is None else VirtualFile(lambda _opening: TextHandle(text), self.owner.public())

    async def _trace_text(self) -> bytes:
        trace, pid = self.machine.vdev.ttm.trace, os.getpid()
        head = trace.header().encode()

        def line(event: Event) -> str:
            return event.line(pid)

        return head + await paced_lines(list(trace.ring), line)

    async def _trace_json(self) -> bytes:
        return await paced_lines(list(self.machine.vdev.ttm.trace.ring), Event.json_line)

    async def _metrics(self) -> bytes:
        exporter = Exporter(await self._stats(), self.machine.vdev.ttm.counters)
        # Many groups are many lines, and a library is loaded: no request waits for either.
        return await in_thread(exporter.text)

    # -- clients/ ------------------------------------------------------------------------------------------------

    def _find_client(self, name: str) -> Node | None:
        client = self.machine.names.clients.find(name)
        return None if client is None else self._client_file(client)

    def _client_file(self, client: Client) -> VirtualFile:
        async def text() -> bytes:
            made = await client_text(self.machine.vdev, self.machine.names, client)
            return made.encode("utf-8", "surrogateescape")

        if client is self.machine.names.clients.kernel:
            return slow_file(text, self.owner.only(0o400), self.lengths)
        return slow_file(text, Fixed(0o400, client.uid, self.owner.gid), self.lengths)

    # -- regions/NAME/ -------------------------------------------------------------------------------------------

    def find_region_file(self, manager: ResourceManager, name: str) -> Node | None:
        """One of REGION_FILES of a region."""
        if name == "fences":
            return self._private(lambda: eviction_fences_text(manager))
        if name == "lru":
            return self._slow_region_file(lambda: lru_text(manager))
        if name == "map":
            machine = self.machine
            return self._slow_region_file(lambda: map_text(machine.vdev, machine.names, self.svm, manager))
        return None

    def _slow_region_file(self, text: SlowText) -> VirtualFile:
        """For the owner: it names BOs."""
        return slow_file(text, self.owner.only(0o400), self.lengths)

    # -- debug/ --------------------------------------------------------------------------------------------------

    def find_debug(self, name: str) -> Node | None:
        """A node of debug/."""
        if name == "ttm":
            return self._ttm
        if name == "gem_info":
            return slow_file(self._gem_info, self.owner.only(0o400), self.lengths)
        if name == "recorder":
            return slow_file(self._recorder, self.owner.only(0o400), self.lengths)
        if name == "vram" and (arena := self._vram) is not None:
            return VirtualFile(lambda _opening: VramHandle(arena), self.owner.only(0o400))
        manager = self._managers.get(name)
        return None if manager is None else self._private(manager.debug)

    async def _recorder(self) -> bytes:
        return await paced_lines(list(self.machine.vdev.ttm.recorder.entries), Entry.json_line)

    async def _gem_info(self) -> bytes:
        return (await gem_info(self.machine.vdev, self.machine.names)).encode()

    def _find_ttm(self, name: str) -> Node | None:
        ttm = self.machine.vdev.ttm
        if name == "buffer_objects":
            return self._private(lambda: f"{ttm.num_bos}\n")
        if name == "page_pool":
            return self._private(self.machine.vdev.pool.page_pool_table)
        if name == "page_pool_shrink":
            return self._trigger("page_pool_shrink", lambda: self._pool_shrink, self._shrink_pool)
        if name == "tt_shrink":
            return self._trigger("tt_shrink", lambda: self._tt_shrink, self._swap_one_out)
        return None

    def _trigger(self, name: str, result: Callable[[], str], work: Callable[[], Any]) -> VirtualFile:
        async def text() -> bytes:
            return result().encode()

        async def trigger() -> None:
            seconds = self.runner.timeout
            too_late = TtmError(errno.ETIME, f"not done within {seconds:g} s (command_timeout)")
            with self.runner.error_log.watching(f"debug/ttm/{name}"):
                await bounded(work, seconds, too_late)

        return trigger_file(text, trigger, self.owner.only(0o600))

    async def _shrink_pool(self) -> None:
        """ttm_pool_debugfs_shrink_show: count before / pages freed."""
        pool = self.machine.vdev.pool
        before = pool.pooled_pages
        self._pool_shrink = f"{before}/{pool.shrink(min(SHRINK_BATCH, before)) if before else 0}\n"

    async def _swap_one_out(self) -> None:
        """ttm_tt_debugfs_shrink_show: the pages that one ttm_global_swapout moved, or its negative errno."""
        try:
            done = await calls.swapout_all(self.machine.vdev, 1, OperationContext())
        except TtmError as error:
            self._tt_shrink = f"-{error.errno}\n"
            raise
        self._tt_shrink = f"{done['pages_out']}\n"
