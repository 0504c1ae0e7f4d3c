"""Drivers: which there are, and how one from outside is found.

A driver is a class that derives from DefaultDriver. A name is one of DRIVERS, or one that an installed package
registers as an entry point of the group `ttmfs.drivers`; `module:Class` is imported, `PATH.py:Class` is read and run.
"""

import errno
import importlib
import importlib.metadata
from typing import Final

from ttmfs.driver.amdgpu import AmdgpuDriver
from ttmfs.driver.hardware import Hardware
from ttmfs.driver.outside import hold_to_it
from ttmfs.driver.policy import DefaultDriver
from ttmfs.driver.vmwgfx import VmwgfxDriver
from ttmfs.errors import TtmError, no_such
from ttmfs.policy.files import read_source

GROUP: Final = "ttmfs.drivers"
DRIVERS: Final[dict[str, type[DefaultDriver]]] = {
    "default": DefaultDriver,
    "vmwgfx": VmwgfxDriver,
    "amdgpu": AmdgpuDriver,
}


def find_driver(text: str) -> type[DefaultDriver]:
    """The class. TtmError: EINVAL for none, or what cannot be loaded; for a file also what open says, and EFBIG."""
    if text in DRIVERS:
        return DRIVERS[text]
    place, colon, attribute = text.rpartition(":")
    try:
        found = _load(text) if not colon else _load_from(place, attribute)
    except TtmError:
        raise
    except (Exception, SystemExit) as error:  # whatever foreign code does when it is imported
        raise TtmError(errno.EINVAL, f"--driver {text}: it cannot be loaded: {type(error).__name__}: {error}") from None
    if not isinstance(found, type) or not issubclass(found, DefaultDriver):
        raise TtmError(
            errno.EINVAL, f"--driver {text} is no driver: derive the class from ttmfs.driver.policy.DefaultDriver"
        )
    return found


def make_driver(text: str, vdev: Hardware) -> DefaultDriver:
    """One for a device. TtmError as `find_driver`, and EINVAL with what its constructor raises."""
    cls = find_driver(text)
    try:
        driver = cls(vdev)
        if cls not in DRIVERS.values():
            hold_to_it(driver)
        return driver
    except (Exception, SystemExit) as error:  # of foreign code, too
        raise TtmError(errno.EINVAL, f"--driver {text}: it cannot be made: {type(error).__name__}: {error}") from None


def _load(name: str) -> object:
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return point.load()
    known = [*DRIVERS, *importlib.metadata.entry_points(group=GROUP).names]
    raise no_such(name, "driver", known, ", or PATH.py:Class")


def _load_from(place: str, attribute: str) -> object:
    if place.endswith(".py"):
        return read_source(place, attribute, None).load()
    return getattr(importlib.import_module(place), attribute)
