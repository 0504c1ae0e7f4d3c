"""Walk: every virtual file of a mount, found by asking the tree of a small device that is not mounted."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import trio

from ttmfs.driver.config import Config, Region
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.knobs import knobs
from ttmfs.driver.namespace import Namespace
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.commands.objects_and_ctl import CTL_COMMANDS, OBJECT_COMMANDS
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.space_knobs import svm_knobs
from ttmfs.fs.commands.spaces import SPACE_COMMANDS
from ttmfs.fs.commands.vms import VM_COMMANDS
from ttmfs.fs.kernel.rights import Owner
from ttmfs.fs.tree.attributes import status
from ttmfs.fs.tree.device import Tree
from ttmfs.fs.tree.made import OwnRights
from ttmfs.fs.tree.nodes import Node, VirtualDir, VirtualFile
from ttmfs.fs.tree.spaces import status as space_status
from ttmfs.fs.tree.stat_keys import key_of, leaves
from ttmfs.observe.inject import PLACES
from ttmfs.svm.names import SpaceNames
from ttmfs.svm.spaces import Svm

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """What a mount has. `files`: path with names replaced (`objects/NAME/status`) and whether it can be written,
    commands left out. The others are the keys that files of several values show, with the values of that device; of
    `stats` the keys of the table stat_keys.KEYS."""

    files: dict[str, bool]
    status: dict[str, Any]
    space_status: dict[str, Any]
    knobs: dict[str, str]
    stats: dict[str, Any]


@cache
def walk() -> Found:
    """Look at a device with one BO `tex0`, one address space `heap` and one VM `game`. Nothing of it stays."""
    config = Config(vram=4 * MIB, gtt=4 * MIB, memory=8 * MIB, swap=4 * MIB, regions=(Region("stolen", MIB),))
    vdev = VirtualDevice(config)
    try:
        svm = Svm(vdev)
        names = Namespace(vdev, uid=0, gid=0)
        spaces = SpaceNames(svm, names.new_ino, uid=0, gid=0)
        machine = Machine(vdev, names, svm)
        tree = Tree(machine, Runner(machine, 1.0), spaces, Owner(0, 0))
        file = names.create(names.root, b"tex0", 0o644, 0, 0)
        space: Any = spaces.create(spaces.root, b"heap", 0o644, 0, 0)
        tree.vms.root.mkdir("game", OwnRights(0o755, 0, 0))
        files: dict[str, bool] = {}
        for path, node in _nodes(tree.root, ""):
            name = _general(path)
            if name is not None:
                files[name] = bool(node.mode & 0o200)
        counted = {key_of(path)[0]: value for path, value in leaves(trio.run(tree.stats))}
        return Found(files, status(vdev, file.bo), space_status(space), {**knobs(vdev), **svm_knobs(svm)}, counted)
    finally:
        vdev.close()


def _nodes(directory: VirtualDir, path: str) -> Iterator[tuple[str, Node]]:
    for _number, name in directory.names.after(0):
        node = directory.find(name)
        if isinstance(node, VirtualDir):
            yield from _nodes(node, f"{path}{name}/")
        elif isinstance(node, VirtualFile):
            yield f"{path}{name}", node


def _general(path: str) -> str | None:
    """The path as the reference names it; None for a command, which has a table of its own."""
    first, _, rest = path.partition("/")
    name, _, leaf = rest.partition("/")
    commands = {"objects": OBJECT_COMMANDS, "svm_objects": SPACE_COMMANDS, "vm": VM_COMMANDS}
    if first in commands:
        return None if leaf in commands[first] else f"{first}/NAME/{leaf}"
    if first == "ctl" and rest in CTL_COMMANDS:
        return None
    if first == "regions":
        return f"regions/REGION/{leaf}"
    if first == "clients":
        return "clients/CLIENT"
    if first == "debug" and name.removeprefix("fail_") in PLACES:
        return f"debug/fail_PLACE/{leaf}"
    if first == "debug" and name.endswith("_mm"):
        return "debug/REGION_mm"
    return path
