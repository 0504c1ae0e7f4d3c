"""Maps of regions inside a recording: comments before its first event and after its last, for ttm-report."""

import json
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from ttm_tools.device import Device
from ttm_tools.errors import MountError
from ttm_tools.map import read_region
from ttm_tools.pagemap import Region

_MAP: Final = "# map: "


def lines_of(device: Device, when: float) -> list[str]:
    """The maps of now as comments; none where this user may not read them. `when` is on the device's clock, seconds."""
    try:
        regions = [read_region(device, name) for name in device.regions()]
    except (OSError, MountError):
        return []
    found = []
    for region in regions:
        runs = np.stack((region.first, region.count, region.order, region.owner), axis=1).ravel().tolist()
        value = {
            "when": when,
            "region": region.name,
            "pages": region.pages,
            "visible": region.visible,
            "used": region.used,
            "owners": region.owners,
            "runs": runs,
        }
        found.append(f"{_MAP}{json.dumps(value, separators=(',', ':'))}\n")
    return found


def maps_in(lines: Iterable[str]) -> list[tuple[float, list[Region]]]:
    """(seconds, regions) of each moment that a recording has maps of, in order. Lines that are broken are left out."""
    found: dict[float, list[Region]] = {}
    for line in lines:
        if line.startswith(_MAP):
            try:
                when, region = _region(json.loads(line.removeprefix(_MAP)))
            except (ValueError, KeyError, TypeError):
                continue
            found.setdefault(when, []).append(region)
    return sorted(found.items())


def _region(value: dict[str, Any]) -> tuple[float, Region]:
    columns = np.array(value["runs"], np.int64).reshape(-1, 4).T
    owners = [str(name) for name in value["owners"]]
    if len(columns[3]) and not 0 <= int(columns[3].min()) <= int(columns[3].max()) < len(owners):
        raise ValueError("a run of nobody")
    pages, visible, used = (int(value[key]) for key in ("pages", "visible", "used"))
    if len(columns[0]) and (columns[0].min() < 0 or columns[1].min() <= 0 or (columns[0] + columns[1]).max() > pages):
        raise ValueError("a run that is not there")
    runs = (np.ascontiguousarray(column) for column in columns)
    return float(value["when"]), Region(str(value["region"]), pages, visible, used, owners, *runs)
