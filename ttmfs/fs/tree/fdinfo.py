"""clients/: one file per client in the format of drm fdinfo (drm-usage-stats), and debug/gem_info.

Regions carry their own names. Sizes are printed as drm_print_memory_stats does: divided by 1024 while that leaves no
remainder, at most twice.
"""

from collections.abc import Callable
from typing import Final

from ttmfs.driver.clients import Client
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.entries import FIRST_INO
from ttmfs.driver.namespace import BoFile, Namespace
from ttmfs.driver.usage import RegionUsage, Usages, bos_of, usage_of, usage_of_open
from ttmfs.fs.commands.quoting import escape
from ttmfs.sync.breather import Breather
from ttmfs.ttm.account import BOS, Account
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.placement import SYSTEM, VRAM
from ttmfs.units import PAGE_SHIFT

_STATS: Final[tuple[tuple[str, Callable[[RegionUsage], int]], ...]] = (
    ("total", lambda usage: usage.total),
    ("shared", lambda usage: usage.shared),
    ("active", lambda usage: usage.active),
    ("resident", lambda usage: usage.resident),
    ("purgeable", lambda usage: usage.purgeable),
)


def size_text(size: int) -> str:
    """A size with the largest unit of none, KiB and MiB that divides it."""
    units = ("", " KiB", " MiB")
    unit = 0
    while unit < 2 and size and not size & 1023:
        size >>= 10
        unit += 1
    return f"{size}{units[unit]}"


def fdinfo(client: Client, usages: Usages) -> str:
    """The text of one client."""
    lines = ["drm-driver:\tttmfs", f"drm-client-id:\t{client.id}", f"drm-client-name:\t{escape(client.command)}"]
    lines += [f"drm-engine-{engine}:\t{ns} ns" for engine, ns in client.engine_ns.items()]
    for region, usage in usages.items():
        lines += [f"drm-{name}-{region}:\t{size_text(value(usage))}" for name, value in _STATS]
    return "\n".join(lines) + "\n"


async def client_text(vdev: VirtualDevice, names: Namespace, client: Client) -> str:
    """The text of one client now."""
    text = fdinfo(client, await usage_of(vdev, names, client))
    if client is names.clients.kernel:
        return text
    text += f"ttmfs-open:\t{len(client.opens)}\n"
    for region, usage in (await usage_of_open(vdev, client)).items():
        text += f"ttmfs-open-{region}:\t{size_text(usage.total)}\n"
    groups = sorted({escape(group.path) for group in {file.bo.group.live for file in client.files.values()}})
    text += "".join(f"ttmfs-group:\t{group}\n" for group in groups)
    return text + user_lines(vdev.ttm.accounts.of(client.uid), client.uid)


def user_lines(account: Account, uid: int) -> str:
    """What the user of a client has in all, and may have: `ttmfs-charged-WHAT` and `ttmfs-limit-WHAT`."""

    def amount(what: str, count: int) -> str:
        return str(count) if what == BOS else size_text(count << PAGE_SHIFT)

    lines = [f"ttmfs-uid:\t{uid}"]
    for what in sorted({*account.charged, *account.limits}):
        lines.append(f"ttmfs-charged-{what}:\t{amount(what, account.charged.get(what, 0))}")
        if what in account.limits:
            lines.append(f"ttmfs-limit-{what}:\t{amount(what, account.limits[what])}")
    return "\n".join(lines) + "\n"


async def gem_info(vdev: VirtualDevice, names: Namespace) -> str:
    """amdgpu_gem_info: the clients, and under each its BOs: handle, size, placement, pins, flags."""
    lines: list[str] = []
    breather = Breather()
    for client in list(names.clients):
        lines.append(f"pid {client.pid:8d} command {escape(client.command)}:")
        for number, bo in enumerate(await bos_of(vdev, names, client), 1):
            lines.append(_bo_line(bo, number))
            await breather.step()
    return "\n".join(lines) + "\n"


def _bo_line(bo: BufferObject, number: int) -> str:
    file = bo.private
    handle = file.ino - FIRST_INO if isinstance(file, BoFile) else number
    line = f"\t\t0x{handle & 0xFFFFFFFF:08x}: {bo.size:12d} byte {_placement(bo)}"
    if bo.pin_count:
        line += f" pin count {bo.pin_count}"
    return line + (" imported" if bo.external else "")


def _placement(bo: BufferObject) -> str:
    """amdgpu's word for where it is."""
    resource = bo.resource
    if resource is None:
        return "NONE"
    if resource.mem_type == SYSTEM:
        return "CPU"
    word = resource.mem_type.upper()
    return f"{word} VISIBLE" if resource.mem_type == VRAM and bo.visible else word


def mem_info(vdev: VirtualDevice) -> dict[str, Callable[[], str]]:
    """amdgpu's sysfs files in the root of the mount, by name: decimal bytes."""

    def visible(attribute: str) -> int:
        manager = vdev.ttm.managers[VRAM]
        return getattr(manager, attribute) << 12 if isinstance(manager, BuddyManager) else 0

    managers = vdev.ttm.managers
    return {
        "mem_info_vram_total": lambda: f"{managers['vram'].size}\n",
        "mem_info_vram_used": lambda: f"{managers['vram'].usage}\n",
        "mem_info_vis_vram_total": lambda: f"{visible('visible_pages')}\n",
        "mem_info_vis_vram_used": lambda: f"{visible('visible_used_pages')}\n",
        "mem_info_gtt_total": lambda: f"{managers['gtt'].size}\n",
        "mem_info_gtt_used": lambda: f"{managers['gtt'].usage}\n",
    }
