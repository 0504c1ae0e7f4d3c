"""The shape of the code: who may import whom, how long a file may be, where threads and time come from.

Each rule is a function that says what breaks it, in a tree of files; it is shown below that each finds something. What
breaks a rule today stands in a list, which only gets shorter: a row that is no longer needed is a finding too.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.source_tree import SourceTree
from ttmfs.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[1]

LAYERS = (
    ("clock", "errors", "units"),
    ("option_types",),
    ("observe",),
    ("sync",),
    ("memory",),
    ("ttm",),
    ("policy",),
    ("driver",),
    ("svm",),
    ("fs", "replay"),
    ("batch", "config_file", "doctor", "fstab", "logs", "metrics_process", "mounts", "run", "service", "status"),
    ("device_words", "metrics_server"),
    ("device_options",),
    ("cli",),
    ("__main__",),
)
"""From the ground up: what a row names imports only from the rows above it here, and its own package."""

ROOMS = {
    "fs": (("kernel",), ("commands",), ("tree",), ("requests",), ("mount", "daemon")),
    "cli": (("common",), ("batch", "doctor", "look", "metrics", "mount", "run", "umount")),
}
"""The same inside a package: its rooms, each a folder or a module, from the ground up."""

KNOW_FUSE = ("batch", "cli", "doctor", "fs", "run")
ENTRIES = ("ttmfs.__main__", *(command.where.partition(":")[0] for command in COMMANDS))
"""Modules that are run, or loaded when their command is asked for."""

INSIDE = {
    # It is needed when somebody reads `metrics`, and takes long to load.
    "ttmfs.fs.tree.metrics": ("prometheus_client",),
    # `--engine sizes` needs no core.
    "ttmfs.replay.sweep": ("ttmfs.replay.device",),
    # The watchdog's process must not load it.
    "ttmfs.fs.kernel.watchdog": ("trio",),
}
"""What may be imported inside functions, and why."""

CIRCLES: dict[str, tuple[str, ...]] = {}
"""By package: files that import each other in a circle today. A circle is a part of one of these, or is new."""

LIMIT = 450
"""Lines of a file."""

LONG: tuple[str, ...] = ()
"""Files beyond it today."""

CORE = ("observe", "sync", "memory", "ttm", "driver", "svm")
OFFLOAD = "ttmfs.sync.offload"
"""The core's one way to threads. Locks are anybody's: what lanes run may need one."""
AT_ONCE = ("ttmfs.ttm.at_once", "ttmfs.ttm.holdings", "ttmfs.ttm.tt", "ttmfs.svm.stored")
"""Where nothing awaits: what was found out about a page is true when its bytes are touched (R1)."""
_PLAIN = ("int", "str", "bytes")
_THREADS = ("Thread", "Timer", "to_thread", "from_thread", "concurrent", "asyncio", "multiprocessing")


def layer(module: str) -> int | None:
    """The row of LAYERS that a module is in; None for the package itself, which holds the version."""
    parts = module.split(".")
    return None if len(parts) == 1 else next(n for n, row in enumerate(LAYERS) if parts[1] in row)


def room(module: str) -> int | None:
    """The row of ROOMS that a module is in; None for a package without rooms, and for the package itself."""
    parts = module.split(".")
    if len(parts) < 3 or parts[1] not in ROOMS:
        return None
    return next((n for n, row in enumerate(ROOMS[parts[1]]) if parts[2] in row), -1)


def in_no_layer(tree: SourceTree) -> Iterator[str]:
    """Modules that LAYERS or ROOMS do not know."""
    known = {name for row in LAYERS for name in row}
    for name in tree.modules:
        if ("." in name and name.split(".")[1] not in known) or room(name) == -1:
            yield name


def upward(tree: SourceTree) -> Iterator[str]:
    """Imports from a layer above, for type checkers alone as well."""
    for found in tree.imports:
        if found.imported in tree.modules:
            mine, other = layer(found.importer), layer(found.imported)
            beside = found.importer.split(".")[1:2] == found.imported.split(".")[1:2]
            if mine is not None and other is not None and (other > mine or (other == mine and mine and not beside)):
                yield f"{found.importer}:{found.line} imports {found.imported}, which is above it"


def up_the_stairs(tree: SourceTree) -> Iterator[str]:
    """Imports from a room above, in the same package."""
    for found in tree.imports:
        if found.imported.split(".")[:2] == found.importer.split(".")[:2]:
            mine, other = room(found.importer), room(found.imported)
            if mine is not None and other is not None and other > mine:
                yield f"{found.importer}:{found.line} imports {found.imported}, a room above it"


def inside_functions(tree: SourceTree) -> Iterator[str]:
    """Imports inside functions that INSIDE does not list."""
    for found in tree.imports:
        if found.inside and not any(
            f"{found.imported}.".startswith(f"{what}.") for what in INSIDE.get(found.importer, ())
        ):
            yield f"{found.importer}:{found.line} imports {found.imported} inside {found.inside}"


def fuse_below_fs(tree: SourceTree) -> Iterator[str]:
    """Modules outside KNOW_FUSE that import pyfuse3."""
    for found in tree.imports:
        if found.imported.split(".")[0] == "pyfuse3" and found.importer.split(".")[1] not in KNOW_FUSE:
            yield f"{found.importer}:{found.line} imports {found.imported}"


def new_circles(tree: SourceTree) -> Iterator[str]:
    """Circles of imports that are no part of a known one."""
    for circle in tree.circles():
        if not any(circle <= known for known in known_circles()):
            yield "import each other in a circle: " + " ".join(sorted(circle))


def known_circles() -> list[frozenset[str]]:
    """CIRCLES as modules."""
    return [
        frozenset(f"ttmfs.{package}.{name}" for name in row.split())
        for package, rows in CIRCLES.items()
        for row in rows
    ]


def without_header(tree: SourceTree) -> Iterator[str]:
    """Modules that do not say at their top what they are."""
    yield from (name for name, module in tree.modules.items() if not module.header)


def imported_by_none(tree: SourceTree) -> Iterator[str]:
    """Modules that no other one needs; a package that only holds others is not asked."""
    needed = {found.imported for found in tree.imports}
    for name, module in tree.modules.items():
        if name not in needed and name not in ENTRIES and not module.is_package:
            yield name


def own_threads(tree: SourceTree) -> Iterator[str]:
    """Threads of the core beside `sync/offload`."""
    for found in tree.imports:
        if _in_core(found.importer) and not set(_THREADS).isdisjoint(found.imported.split(".")):
            yield f"{found.importer}:{found.line} imports {found.imported}"
    for name, module in tree.modules.items():
        for node in ast.walk(module.tree) if _in_core(name) and name != OFFLOAD else ():
            if isinstance(node, ast.Attribute) and node.attr in _THREADS:
                yield f"{name}:{node.lineno} uses {node.attr}: give it to a lane of sync/offload"


def own_clocks(tree: SourceTree) -> Iterator[str]:
    """Time in the core that is not read from `ttmfs/clock.py`."""
    for found in tree.imports:
        if _in_core(found.importer) and found.imported.split(".")[0] in ("time", "datetime"):
            yield f"{found.importer}:{found.line} imports {found.imported}: read ttmfs/clock.py"


def sets_of_objects(tree: SourceTree) -> Iterator[str]:
    """Sets whose elements lie in the order of their addresses: two runs would go through them differently."""
    for name, module in tree.modules.items():
        for node in ast.walk(module.tree) if _in_core(name) else ():
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("set", "frozenset"):
                what = ast.unparse(node.slice)
                yield from [f"{name}:{node.lineno} has a set of {what}: use a dict"] * (what not in _PLAIN)


def past_the_setters(tree: SourceTree) -> Iterator[str]:
    """A BO's resource or tt set elsewhere than in its own file: clients could go on reading from the old one."""
    for name, module in tree.modules.items():
        for node in ast.walk(module.tree) if name != "ttmfs.ttm.bo" else ():
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Store):
                continue
            what = ast.unparse(node)
            if what.endswith((".resource", ".tt")) and not what.startswith("self."):
                yield f"{name}:{node.lineno} sets {what}: call assign or set_tt"


def awaits_at_once(tree: SourceTree) -> Iterator[str]:
    """An await where there is none: the bytes could lie elsewhere by the time they are touched."""
    for name, module in tree.modules.items():
        for node in ast.walk(module.tree) if name in AT_ONCE else ():
            if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                yield f"{name}:{node.lineno} awaits"


def waits_without_shield(tree: SourceTree) -> Iterator[str]:
    """A request that is answered at once, and awaits all the same what is not guarded: a cancellation reaches it."""
    for name, module in tree.modules.items():
        if not name.startswith("ttmfs.fs.requests."):
            continue
        functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.AsyncFunctionDef)]
        by = {node.name: [ast.unparse(each) for each in node.decorator_list] for node in functions}
        for function in functions:
            for node in ast.walk(function) if "at_once" in by[function.name] else ():
                if isinstance(node, ast.Await):
                    awaited = ast.unparse(node.value).removeprefix("self.").partition("(")[0]
                    if not {"guarded", "at_once"} & set(by.get(awaited, ())):
                        yield f"{name}:{node.lineno} awaits {awaited}"
                elif isinstance(node, ast.AsyncFor | ast.AsyncWith):
                    yield f"{name}:{node.lineno} awaits"


def _in_core(module: str) -> bool:
    return module.split(".")[1:2] != [] and module.split(".")[1] in CORE


RULES: tuple[Callable[[SourceTree], Iterator[str]], ...] = (
    *(in_no_layer, upward, up_the_stairs, inside_functions, fuse_below_fs, new_circles),
    *(without_header, imported_by_none, own_threads, own_clocks, sets_of_objects, past_the_setters),
    *(awaits_at_once, waits_without_shield),
)

TTMFS = SourceTree.read(REPOSITORY / "ttmfs")


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps(rule: Callable[[SourceTree], Iterator[str]]) -> None:
    assert list(rule(TTMFS)) == []


def test_known_circles_are_still_there() -> None:
    """A row of CIRCLES is exactly a circle of today: whoever opens one makes the list shorter."""
    assert sorted(known_circles(), key=sorted) == TTMFS.circles()


def test_what_is_listed_as_imported_inside_functions_is() -> None:
    """Otherwise the row goes."""
    for module, allowed in INSIDE.items():
        inside = [f"{found.imported}." for found in TTMFS.imports if found.importer == module and found.inside]
        assert [what for what in allowed if not any(name.startswith(f"{what}.") for name in inside)] == []


def test_tools_know_nothing_of_ttmfs() -> None:
    """They work through a mount only."""
    tools = SourceTree.read(REPOSITORY / "mountpoint-tools" / "ttm_tools")
    assert [found for found in tools.imports if found.imported.split(".")[0] == "ttmfs"] == []
    assert tools.circles() == []


def test_no_file_is_too_long() -> None:
    long = []
    for folder in ("ttmfs", "mountpoint-tools", "scripts", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path.read_text(encoding="utf-8").count("\n") > LIMIT:
                long.append(str(path.relative_to(REPOSITORY)))
    assert sorted(long) == sorted(LONG)


BROKEN: dict[str, tuple[Callable[[SourceTree], Iterator[str]], str]] = {
    "shops/a.py": (in_no_layer, '"""x"""\n'),
    "fs/attic/a.py": (in_no_layer, '"""x"""\n'),
    "fs/kernel/a.py": (up_the_stairs, '"""x"""\nfrom ttmfs.fs.tree.b import C\n'),
    "ttm/a.py": (upward, '"""x"""\nfrom ttmfs.driver import b\n'),
    "ttm/b.py": (
        upward,
        '"""x"""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ttmfs.driver.b import C\n',
    ),
    "doctor.py": (upward, '"""x"""\nfrom ttmfs import cli\n'),
    "fs/mount.py": (upward, '"""x"""\nfrom ttmfs.replay import b\n'),
    "sync/a.py": (inside_functions, '"""x"""\ndef f():\n    if f:\n        import json\n'),
    "svm/a.py": (fuse_below_fs, '"""x"""\nimport pyfuse3\n'),
    "driver/c.py": (new_circles, '"""x"""\nfrom ttmfs.driver import d\n'),
    "memory/a.py": (without_header, "x = 1\n"),
    "memory/b.py": (imported_by_none, '"""x"""\n'),
    "ttm/c.py": (own_threads, '"""x"""\nfrom threading import Thread\n'),
    "ttm/d.py": (own_threads, '"""x"""\nasync def f(trio):\n    await trio.to_thread.run_sync(f)\n'),
    "driver/e.py": (own_clocks, '"""x"""\nimport time\n'),
    "ttm/f.py": (past_the_setters, '"""x"""\ndef f(bo):\n    old, bo.tt = bo.tt, None\n'),
    "ttm/at_once.py": (awaits_at_once, '"""x"""\nasync def f():\n    pass\n'),
    "fs/requests/a.py": (waits_without_shield, '"""x"""\n@at_once\nasync def f(self):\n    await self.g()\n'),
    "ttm/e.py": (sets_of_objects, '"""x"""\nbos: "set[str]"\nothers: set[Bo] = set()\n'),
}
"""A file that breaks one rule, and which."""


@pytest.mark.parametrize("name", BROKEN)
def test_each_rule_finds_what_breaks_it(tmp_path: Path, name: str) -> None:
    """In a tree where all is well but this file."""
    rule, text = BROKEN[name]
    package = tmp_path / "ttmfs"
    files = {
        "__init__.py": '"""x"""\n',
        "cli.py": '"""x"""\n'
        + "".join(f"import ttmfs.{name}\n" for name in ("driver.b", "driver.d", "fs.tree.b", "replay.b")),
        "fs/tree/b.py": '"""x"""\n',
        "replay/b.py": '"""x"""\n',
        "__main__.py": '"""x"""\nfrom ttmfs.cli import C\n',
        "driver/__init__.py": '"""x"""\n',
        "driver/b.py": '"""x"""\nfrom .d import C\n',
        "driver/d.py": '"""x"""\nfrom ttmfs.driver import c\n' if rule is new_circles else '"""x"""\n',
    }
    for path, content in files.items():
        package.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
        package.joinpath(path).write_text(content)
    if rule is not new_circles:
        assert [list(each(SourceTree.read(package))) for each in RULES] == [[]] * len(RULES)
    package.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
    package.joinpath(name).write_text(text)
    module = "ttmfs." + name.removesuffix(".py").replace("/", ".")
    found = list(rule(SourceTree.read(package)))
    assert len(found) == 1, found
    assert module.removeprefix("ttmfs.") in found[0]
