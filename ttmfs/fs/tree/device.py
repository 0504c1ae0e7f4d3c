"""The mount's tree of virtual directories and files; bo/ is the namespace's."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import trio

from ttmfs.driver.entries import Folder
from ttmfs.driver.knobs import knobs, set_knob
from ttmfs.driver.name_check import check_bos, check_names
from ttmfs.driver.namespace import BoFile
from ttmfs.errors import TtmError, no_such
from ttmfs.fs.commands.command import Command, Machine, Result
from ttmfs.fs.commands.handles import CommandHandle, TextHandle
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.quoting import for_shell
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.space_knobs import set_svm_knob, svm_knobs
from ttmfs.fs.commands.trace import set_trace, trace_state
from ttmfs.fs.kernel.inval import PageCache
from ttmfs.fs.kernel.opening import Opening
from ttmfs.fs.kernel.rights import AttributeOf, CommandOf, FolderOf, ObjectOf, Owner, QuestionOf, ReadersOf, Rights
from ttmfs.fs.tree import attributes
from ttmfs.fs.tree.device_state import options_now
from ttmfs.fs.tree.groups import GROUPS, GroupTree
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.mirrors import FolderNames, entry_key, folder_key
from ttmfs.fs.tree.nodes import Handle, Lengths, NameTable, Node, VirtualDir, VirtualFile
from ttmfs.fs.tree.observe import REGION_FILES, ObserveTree
from ttmfs.fs.tree.peek import PeekHandle
from ttmfs.fs.tree.policies import POLICIES, PolicyTree
from ttmfs.fs.tree.readme import readme
from ttmfs.fs.tree.region_texts import FENCES_HEAD, fence_line
from ttmfs.fs.tree.slow_text import paced_lines, slow_file
from ttmfs.fs.tree.snapshot import SnapshotHandle
from ttmfs.fs.tree.spaces import SvmTree
from ttmfs.fs.tree.stats import region_stats, stats, swap_stats
from ttmfs.fs.tree.tasks import tasks_text
from ttmfs.fs.tree.vms import VM, VmTree
from ttmfs.observe.inject import KEYS as INJECTION_KEYS
from ttmfs.observe.inject import PLACES as INJECTION_PLACES
from ttmfs.svm.audit import svm_check_steps
from ttmfs.svm.names import SpaceNames
from ttmfs.sync.breather import Breather
from ttmfs.ttm.account import BOS
from ttmfs.ttm.placement import SYSTEM
from ttmfs.ttm.resource import ResourceManager
from ttmfs.units import MAX_ORDER

_SWAP_FILES: Final = ("store", "size", "used", "pages", "ratio")
_OBJECT_NAMES: Final = FixedNames(
    (*OBJECT_COMMANDS, *attributes.SETTABLE, "group", "peek", "snapshot", "status", "status.json", VM)
)
_CHECK_THEMSELVES: Final = ("submit", "copy")
"""Commands of ctl/ that anybody may give: they look at the rights on each BO that they name."""
_PINS: Final = ("pin", "unpin")
_REGION_FILES: Final = ("size", "used", "visible_size", "visible_used", "usage", "debug", *REGION_FILES)


class Tree:
    """Builds nodes for names. `owner` is the mounting user: ctl/, and what shows names of BOs, is theirs."""

    def __init__(self, machine: Machine, runner: Runner, spaces: SpaceNames, owner: Owner) -> None:
        self.machine = machine
        self.spaces = spaces
        self.runner = runner
        self.owner = owner
        self.page_cache: PageCache | None = None
        self.svm = SvmTree(spaces, runner)
        self.loop_status: Callable[[], str] = lambda: ""
        self.lengths = Lengths()
        self.groups = GroupTree(machine, runner, owner)
        self.vms = VmTree(machine, runner, self.lengths, owner)
        self.checks: list[Callable[[], Iterator[str | None]]] = []
        """What others have to say in selfcheck: sentences, and None where it may pause."""
        self._root_files: dict[str, Callable[[], VirtualFile]] = {
            "README": lambda: self._text(lambda: readme(machine.vdev.region_names)),
            "stats": lambda: slow_file(self._stats_text, owner.public(), None),
            "error_log": lambda: self._private(runner.error_log.text),
            "options": lambda: self._private(lambda: options_now(machine.vdev)),
        }
        self.observe = ObserveTree(machine, runner, spaces.svm, self.stats, self.lengths, owner)
        injections = [f"fail_{place}" for place in INJECTION_PLACES]
        debug_files = ("loop", "tasks", "pause_engine", "ban_memcpy", "ban_exchange")
        debug = FixedNames(
            ("ttm", *injections, *self.observe.debug_files, *debug_files), folders=1 + len(injections)
        )
        regions = machine.vdev.region_names
        self._dirs: dict[str, Node] = {
            "bo": machine.names.root,
            "svm": spaces.root,
            "clients": self.observe.clients,
            "objects": self._objects_dir(machine.names.root),
            "svm_objects": self.svm.root,
            "ctl": self._dir("ctl", self._find_ctl, FixedNames((*CTL_COMMANDS, "config", "selfcheck", "trace"))),
            "regions": self._dir("regions", self._find_region, FixedNames(regions, folders=len(regions))),
            "pool": self._dir("pool", self._find_pool, FixedNames(("fragmentation", "pages"))),
            "swap": self._dir("swap", self._find_swap, FixedNames(_SWAP_FILES)),
            "fences": self._dir("fences", self._find_fences, FixedNames(("pending", "timelines"))),
            "debug": VirtualDir("debug", self._find_debug, debug, owner.only(0o500), stays=True),
            GROUPS: self.groups.root,
            VM: self.vms.root,
            POLICIES: PolicyTree(machine, runner, self.lengths, owner).root,
        }
        root_names = (*self._dirs, *self._root_files, *self.observe.files)
        self.root = self._dir("", self._find_root, FixedNames(root_names, folders=len(self._dirs)))

    def _dir(self, key: str, find: Callable[[str], Node | None], names: NameTable) -> VirtualDir:
        """A folder that everybody may look into, and that stays."""
        return VirtualDir(key, find, names, self.owner.public(0o555), stays=True)

    def _text(self, text: Callable[[], str | bytes], rights: Rights | None = None) -> VirtualFile:
        """A file of some text, for everybody unless something else is said."""
        return VirtualFile(lambda _opening: TextHandle(text), rights or self.owner.public())

    def _private(self, text: Callable[[], str | bytes]) -> VirtualFile:
        """A text for the owner."""
        return self._text(text, self.owner.only(0o400))

    def _dear(self, text: Callable[[], str | bytes]) -> VirtualFile:
        """A text for the owner that is not made for a mere look at its size."""
        return VirtualFile(lambda _opening: TextHandle(text), self.owner.only(0o400), lengths=self.lengths)

    def _value(
        self, text: Callable[[], str], store: Callable[[str], Result | None], path: str, rights: Rights | None = None
    ) -> VirtualFile:
        """A value that is read and written, by the owner; what `store` refuses is logged under `path`."""
        logged = self._logged(path, store)
        rights = rights or self.owner.only(0o600)
        return VirtualFile(lambda _opening: TextHandle(text, logged), rights, writable=True)

    def _logged(self, path: str, store: Callable[[str], Result | None]) -> Callable[[str], Result | None]:
        def logged(text: str) -> Result | None:
            with self.runner.error_log.watching(f"{path} {text.strip()[:200]}"):
                return store(text)

        return logged

    # -- the root ------------------------------------------------------------------------------------------------

    def _find_root(self, name: str) -> Node | None:
        make = self._root_files.get(name)
        return make() if make is not None else self._dirs.get(name) or self.observe.find(name)

    async def stats(self) -> dict[str, Any]:
        """The stats object."""
        return await stats(self.machine.vdev, self.machine.names, self.page_cache, self.spaces.svm)

    async def _stats_text(self) -> bytes:
        return json.dumps(await self.stats()).encode() + b"\n"

    async def watch_signals(self) -> None:
        """Background: end what waits in a virtual file for a process that was signaled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.runner.watch_signals)
            nursery.start_soon(self.observe.pipe.watch_signals)

    def close(self) -> None:
        """The mount goes down: who waits in a virtual file is let go."""
        self.observe.close()

    # -- objects/ ------------------------------------------------------------------------------------------------

    def _objects_dir(self, folder: Folder) -> VirtualDir:
        def find(name: str) -> Node | None:
            raw = os.fsencode(name)
            entry = folder.get(raw)
            if isinstance(entry, Folder):
                return self._objects_dir(entry)
            return self._object_dir(entry_key(entry, folder, raw), entry) if isinstance(entry, BoFile) else None

        names = FolderNames(folder)
        return VirtualDir(folder_key(folder), find, names, FolderOf(folder), stays=folder is self.machine.names.root)

    def _object_dir(self, key: str, file: BoFile) -> VirtualDir:
        bo = file.bo
        return VirtualDir(
            key,
            lambda name: None if bo.deleted else self._find_object_file(file, name),
            _OBJECT_NAMES,
            ObjectOf(file),
            gone=lambda: bo.deleted,
        )

    def _find_object_file(self, file: BoFile, name: str) -> Node | None:
        bo = file.bo
        command = OBJECT_COMMANDS.get(name)
        if command is not None:
            return self._command(command, file)
        if name in attributes.SETTABLE:
            vdev = self.machine.vdev

            def store(text: str) -> Result | None:
                return attributes.set_text(vdev, bo, name, text)

            return self._value(
                lambda: attributes.get_text(bo, name) + "\n", store, f"{bo.name} {name}", AttributeOf(file)
            )
        if name == "group":
            return self.groups.object_file(file)
        if name == VM:
            return self.vms.object_file(file)
        if name == "peek":
            log = self.runner.error_log
            return VirtualFile(lambda opening: PeekHandle(bo, log, opening), AttributeOf(file), writable=True)
        if name == "snapshot":
            return VirtualFile(lambda _opening: SnapshotHandle(bo), ReadersOf(file))
        if name == "status":
            return self._text(lambda: attributes.status_text(attributes.status(self.machine.vdev, bo)), ReadersOf(file))
        if name == "status.json":
            return self._text(lambda: json.dumps(attributes.status(self.machine.vdev, bo)) + "\n", ReadersOf(file))
        return None

    def _rights(self, command: Command, file: BoFile | None) -> Rights:
        """Who may give a command: of a BO who may write it (or read it, to ask), of the device its owner."""
        if file is None:
            return self.owner.public(0o666) if command.name in _CHECK_THEMSELVES else self.owner.only(0o600)
        if command.name in _PINS and not self.machine.vdev.config.user_pins:
            return self.owner.only(0o600)
        return QuestionOf(file) if command.asks else CommandOf(file)

    def _command(self, command: Command, file: BoFile | None) -> VirtualFile:
        def open_handle(opening: Opening) -> Handle:
            bo = None if file is None else file.bo
            name = None if bo is None else bo.name
            path = f"ctl/{command.name}" if name is None else f"objects/{name}/{command.name}"
            return CommandHandle(
                lambda: command.help(for_shell(path)),
                lambda data: self.runner.run(command, name, bo, data, opening),
                opening,
                self.runner.results,
            )

        return VirtualFile(open_handle, self._rights(command, file), writable=True)

    # -- ctl/ ----------------------------------------------------------------------------------------------------

    def _find_ctl(self, name: str) -> Node | None:
        command = CTL_COMMANDS.get(name)
        if command is not None:
            return self._command(command, None)
        if name == "selfcheck":
            return slow_file(self._selfcheck_text, self.owner.only(0o400), self.lengths)
        if name == "trace":
            trace = self.machine.vdev.ttm.trace
            return self._value(lambda: trace_state(trace), lambda text: set_trace(trace, text), "ctl/trace")
        if name == "config":
            return self._value(self._config_text, self._set_config, "ctl/config")
        return None

    def selfcheck(self) -> list[str]:
        """What is wrong with the structures of the device, its address spaces, names and inodes, as sentences."""
        return [sentence for sentence in self._selfcheck_steps() if sentence is not None]

    def _selfcheck_steps(self) -> Iterator[str | None]:
        yield from self.machine.vdev.selfcheck_steps()
        yield from svm_check_steps(self.spaces.svm)
        files = {BOS: len(self.machine.names.files) + len(self.spaces.files)}
        yield from self.machine.vdev.ttm.accounts.check(files)
        yield from check_names(self.machine.names)
        yield from check_names(self.spaces)
        yield from check_bos(self.machine.names)
        for check in self.checks:
            yield None
            yield from check()

    async def _selfcheck_text(self) -> bytes:
        breather = Breather()
        wrong = ""
        for sentence in self._selfcheck_steps():
            if sentence is None:
                await breather.step()
            else:
                wrong += f"{sentence}\n"
        return (wrong or "ok\n").encode("utf-8", "surrogateescape")

    def _knobs(self) -> dict[str, str]:
        return {**knobs(self.machine.vdev), **svm_knobs(self.spaces.svm)}

    def _config_text(self) -> str:
        return "".join(f"{key}={value}\n" for key, value in self._knobs().items())

    def _set_config(self, text: str) -> None:
        """KEY=VALUE…, all of them or none."""
        before = self._knobs()
        changed: list[str] = []
        try:
            for word in text.split():
                key, equals, value = word.partition("=")
                if not equals:
                    raise TtmError(errno.EINVAL, f"{word[:80]!r}: say KEY=VALUE; reading this file shows the keys")
                self._set_knob(key, value)
                changed.append(key)
        except TtmError:
            for key in changed:
                self._set_knob(key, before[key])
            raise

    def _set_knob(self, key: str, value: str) -> None:
        known = self._knobs()
        if key not in known:
            raise no_such(key, "knob", known)
        if not set_svm_knob(self.spaces.svm, key, value):
            set_knob(self.machine.vdev, key, value)
        self.runner.timeout = self.machine.vdev.config.command_timeout

    # -- regions/, pool/, fences/, debug/ -------------------------------------------------------------------------

    def _find_region(self, name: str) -> Node | None:
        manager = self.machine.vdev.ttm.managers.get(name)
        if manager is None:
            return None
        files = _region_files(manager)
        return self._dir(f"region{name}", lambda leaf: self._find_region_file(manager, leaf), FixedNames(files))

    def _find_region_file(self, manager: ResourceManager, name: str) -> Node | None:
        if name in _REGION_FILES[:5]:
            return self._text(lambda: f"{region_stats(self.machine.vdev, manager)[name]}\n")
        if name == "fragmentation" and name in _region_files(manager):
            return self._text(self._fragmentation)
        if name == "debug":
            return self._text(manager.debug)
        return self.observe.find_region_file(manager, name)

    def _find_pool(self, name: str) -> Node | None:
        pool = self.machine.vdev.pool
        if name == "pages":
            return self._text(
                lambda: (
                    f"in_use\t{pool.in_use_pages}\npooled\t{pool.pooled_pages}\n"
                    f"limit\t{pool.limit_pages}\nfree\t{pool.free_pages}\n"
                )
            )
        if name == "fragmentation":
            return self._text(self._fragmentation)
        return None

    def _find_swap(self, name: str) -> Node | None:
        if name not in _SWAP_FILES:
            return None
        return self._text(lambda: f"{swap_stats(self.machine.vdev)[name]}\n")

    def _fragmentation(self) -> str:
        pool = self.machine.vdev.pool
        free = pool.free_by_order()
        rows = [
            f"{order}\t{free[order] if order < len(free) else 0}\t{pool.unusable_free_index(order):.3f}"
            for order in range(MAX_ORDER + 1)
        ]
        return "order\tfree_blocks\tunusable_free_index\n" + "\n".join(rows) + "\n"

    def _find_fences(self, name: str) -> Node | None:
        vdev = self.machine.vdev
        if name == "timelines":
            return self._text(
                lambda: (
                    "context\tname\tlast_signaled\n"
                    + "".join(
                        f"{queue.timeline.context}\t{queue.name}\t{queue.timeline.last_signaled}\n"
                        for queue in vdev.all_queues
                    )
                )
            )
        if name == "pending":
            return slow_file(self._pending_text, self.owner.only(0o400), self.lengths)
        return None

    async def _pending_text(self) -> bytes:
        fences = [fence for queue in self.machine.vdev.all_queues for fence in queue.pending()]
        return FENCES_HEAD.encode() + await paced_lines(fences, fence_line)

    def _find_debug(self, name: str) -> Node | None:
        if name == "loop":
            return self._private(self._loop_text)
        if name == "tasks":
            return self._dear(tasks_text)
        if name.startswith("fail_"):
            return self._find_injection(name[5:])
        if name == "ban_memcpy":
            inject = self.machine.vdev.ttm.inject
            return self._value(lambda: f"{int(inject.ban_memcpy)}\n", self._ban_memcpy, "debug/ban_memcpy")
        if name == "ban_exchange":
            inject = self.machine.vdev.ttm.inject
            return self._value(lambda: f"{int(inject.ban_exchange)}\n", self._ban_exchange, "debug/ban_exchange")
        if name == "pause_engine":
            engine = self.machine.vdev.engines[0]
            return self._value(lambda: f"{int(engine.paused)}\n", self._pause_engines, "debug/pause_engine")
        return self.observe.find_debug(name)

    def _find_injection(self, place: str) -> Node | None:
        if place not in INJECTION_PLACES:
            return None
        attr = self.machine.vdev.ttm.inject[place]

        def find(key: str) -> Node | None:
            if key not in INJECTION_KEYS:
                return None
            path = f"debug/fail_{place}/{key}"
            return self._value(lambda: f"{getattr(attr, key)}\n", lambda text: attr.set(key, text), path)

        return VirtualDir(f"fail_{place}", find, FixedNames(INJECTION_KEYS), self.owner.only(0o500), stays=True)

    def _ban_memcpy(self, text: str) -> None:
        self.machine.vdev.ttm.inject.ban_memcpy = _flag(text, "forbid the CPU to copy for an engine that failed")

    def _ban_exchange(self, text: str) -> None:
        self.machine.vdev.ttm.inject.ban_exchange = _flag(text, "copy what could change hands in whole frames")

    def _loop_text(self) -> str:
        return self.loop_status()

    def _pause_engines(self, text: str) -> None:
        hold = _flag(text, "hold the engines before their next copy")
        for engine in self.machine.vdev.engines:
            engine.paused = hold


def _region_files(manager: ResourceManager) -> tuple[str, ...]:
    return (*_REGION_FILES, "fragmentation") if manager.name == SYSTEM else _REGION_FILES


def _flag(text: str, does: str) -> bool:
    if text.strip() not in ("0", "1"):
        raise TtmError(errno.EINVAL, f"say 1 to {does}, 0 not to")
    return text.strip() == "1"
