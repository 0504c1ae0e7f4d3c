"""Policies and VMs of a mount, where it has them: what is set, and how they do."""

import contextlib
import json
from typing import Any, Final

from ttm_tools.device import Device

VMS: Final = 50
"""VMs that are shown."""


def _text(device: Device, name: str) -> str | None:
    try:
        return device.text(name)
    except OSError:
        return None


class Settings:
    """What `policies/` says. What is to be had is read once: as long as the mount is there it is the same."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._available: list[list[str]] | None = None

    def read(self) -> dict[str, Any] | None:
        """available (kind, name, parameters and sentence), evict by region, prefetch, promote, stats.

        None when the mount has none, or this user may not read it.
        """
        device = self._device
        evict = _text(device, "policies/evict")
        if evict is None:
            return None
        if self._available is None:
            self._available = _available(_text(device, "policies/available") or "")
        found: dict[str, Any] = {
            "evict": [line.split(None, 1) for line in evict.splitlines() if len(line.split()) > 1],
            "prefetch": (_text(device, "policies/prefetch") or "").strip(),
            "promote": (_text(device, "policies/promote") or "").strip(),
            "available": self._available,
            "stats": {},
        }
        with contextlib.suppress(ValueError):
            found["stats"] = json.loads(_text(device, "policies/stats") or "{}")
        return found


def _available(text: str) -> list[list[str]]:
    found: list[list[str]] = []
    for line in text.splitlines():
        words = line.split("\t") if "\t" in line else line.split(None, 2)
        if len(words) > 1 and not line.startswith("#"):
            found.append([words[0], words[1], " ".join(words[2:])])
    return found


def vms(device: Device) -> list[list[Any]] | None:
    """(name, what its `stats` says) of the first VMs that this user may read; None when there are none."""
    found: list[list[Any]] = []
    with contextlib.suppress(FileNotFoundError):
        for name in device.entries("vm")[:VMS]:
            text = _text(device, f"vm/{name}/stats")
            if text is not None:
                found.append([name, json.loads(text)])
    return found or None
