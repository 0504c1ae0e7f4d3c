"""Policies and groups of a mount, where it has them: what is set, and how it does."""

import contextlib
import json
from typing import Any, Final

from ttm_tools.device import Device

GROUPS: Final = 64
"""So many groups are shown."""

_FILES: Final = ("dmem.current", "dmem.max", "dmem.low", "dmem.min", "dmem.peak")


def _text(device: Device, name: str) -> str | None:
    try:
        return device.text(name)
    except OSError:
        return None


def policies(device: Device) -> dict[str, Any] | None:
    """What `policies/` says: available (kind, name, parameters, sentence), evict by region, prefetch, promote, stats.

    None when the mount has none, or this user may not read it.
    """
    evict = _text(device, "policies/evict")
    if evict is None:
        return None
    found: dict[str, Any] = {
        "evict": [line.split(None, 1) for line in evict.splitlines() if len(line.split()) > 1],
        "prefetch": (_text(device, "policies/prefetch") or "").strip(),
        "promote": (_text(device, "policies/promote") or "").strip(),
        "available": [],
        "stats": {},
    }
    for line in (_text(device, "policies/available") or "").splitlines():
        words = line.split("\t") if "\t" in line else line.split(None, 2)
        if len(words) > 1 and not line.startswith("#"):
            found["available"].append([words[0], words[1], " ".join(words[2:])])
    with contextlib.suppress(ValueError):
        found["stats"] = json.loads(_text(device, "policies/stats") or "{}")
    return found


def groups(device: Device) -> list[dict[str, Any]] | None:
    """The groups, each before those in it: `path` ("" is the root), and by file a value by region.

    None when the mount has none.
    """
    found: list[dict[str, Any]] = []
    waiting = [""]
    while waiting and len(found) < GROUPS:
        path = waiting.pop()
        try:
            names = device.entries(f"groups/{path}")
        except OSError:
            if not path:
                return None
            continue
        below = [name for name in names if not name.startswith(("dmem.", "cgroup."))]
        waiting += [f"{path}/{name}".lstrip("/") for name in reversed(below)]
        files = (*_FILES, "dmem.capacity") if not path else _FILES
        values = {file.removeprefix("dmem."): _text(device, f"groups/{path}/{file}") for file in files if file in names}
        found.append({"path": path, **{key: by_region(text or "") for key, text in values.items()}})
    return found


def by_region(text: str) -> dict[str, int | None]:
    """`drm/ttmfs/REGION VALUE` lines: bytes by region, None for `max`."""
    found: dict[str, int | None] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if name and (value.isdecimal() or value == "max"):
            found[name.rsplit("/", 1)[-1]] = None if value == "max" else int(value)
    return found
