"""Knobs: what of a running device can be changed, as ctl/config shows it and takes it. A row a knob."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import format_user_limit, set_user_limit
from ttmfs.errors import TtmError, no_such
from ttmfs.ttm.dmem import Protection
from ttmfs.units import PAGE_SHIFT, parse_size

_LONGEST: Final = 1e6
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Knob:
    """`parse` the text of a key (TtmError(EINVAL)), `read` the value, `write` it; what is mirrored is written too."""

    parse: Callable[[str, str], Any]
    read: Callable[[VirtualDevice], float | str]
    write: Callable[[VirtualDevice, Any], None]


def _seconds(key: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST:
        raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say a number of seconds")
    return seconds


def _size(_key: str, text: str) -> float:
    return parse_size(text)


def _flag(key: str, text: str) -> float:
    if text not in ("0", "1"):
        raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say 0 or 1")
    return text == "1"


def _fault_timeout(vdev: VirtualDevice, value: float) -> None:
    vdev.config.fault_timeout = vdev.ttm.fault_timeout = value


def _command_timeout(vdev: VirtualDevice, value: float) -> None:
    vdev.config.command_timeout = value


def _prefault(vdev: VirtualDevice, value: float) -> None:
    vdev.config.prefault = vdev.ttm.prefault = int(value)


def _pool_limit(vdev: VirtualDevice, value: float) -> None:
    vdev.config.pool_limit = int(value)
    vdev.pool.limit_pages = int(value) >> PAGE_SHIFT


def _propagate_enospc(vdev: VirtualDevice, value: float) -> None:
    vdev.config.propagate_enospc = vdev.ttm.propagate_enospc = bool(value)


def _copy_bandwidth(vdev: VirtualDevice, value: float) -> None:
    vdev.link = replace(vdev.link, bandwidth=value)


def _copy_latency(vdev: VirtualDevice, value: float) -> None:
    vdev.link = replace(vdev.link, latency=value)


def _text(_key: str, text: str) -> str:
    return text


def _defrag_limit(vdev: VirtualDevice, value: float) -> None:
    vdev.defrag.limit = int(value)


def _defrag_interval(vdev: VirtualDevice, value: float) -> None:
    vdev.defrag.interval = value


def _defrag_interval_max(vdev: VirtualDevice, value: float) -> None:
    vdev.defrag.interval_max = value


def _protection(key: str, text: str) -> str:
    if text not in get_args(Protection):
        raise TtmError(errno.EINVAL, f"{key}={text[:40]!r}: say one of {' '.join(get_args(Protection))}")
    return text


def _dmem_protection(vdev: VirtualDevice, value: Protection) -> None:
    vdev.ttm.dmem.protection = value
    vdev.ttm.dmem.changes += 1


KNOBS: Final[Mapping[str, Knob]] = {
    "fault_timeout": Knob(_seconds, lambda vdev: vdev.config.fault_timeout, _fault_timeout),
    "command_timeout": Knob(_seconds, lambda vdev: vdev.config.command_timeout, _command_timeout),
    "prefault": Knob(_size, lambda vdev: vdev.config.prefault, _prefault),
    "pool_limit": Knob(_size, lambda vdev: vdev.config.pool_limit, _pool_limit),
    "propagate_enospc": Knob(_flag, lambda vdev: vdev.config.propagate_enospc, _propagate_enospc),
    "user_limit": Knob(_text, lambda vdev: format_user_limit(vdev.ttm.accounts.limits), set_user_limit),
    "dmem_protection": Knob(_protection, lambda vdev: vdev.ttm.dmem.protection, _dmem_protection),
    "copy_bandwidth": Knob(_size, lambda vdev: vdev.link.bandwidth, _copy_bandwidth),
    "copy_latency": Knob(_seconds, lambda vdev: vdev.link.latency, _copy_latency),
    "defrag_limit": Knob(_size, lambda vdev: vdev.defrag.limit, _defrag_limit),
    "defrag_interval": Knob(_seconds, lambda vdev: vdev.defrag.interval, _defrag_interval),
    "defrag_interval_max": Knob(_seconds, lambda vdev: vdev.defrag.interval_max, _defrag_interval_max),
}


def knobs(vdev: VirtualDevice) -> dict[str, str]:
    """All of them with their values, as they may be written again."""
    return {key: _decimal(knob.read(vdev)) for key, knob in KNOBS.items()}


def set_knob(vdev: VirtualDevice, key: str, text: str) -> None:
    """Change one. TtmError(EINVAL) for an unknown key or a value that it does not take; nothing has changed then."""
    knob = KNOBS.get(key)
    if knob is None:
        raise no_such(key, "knob", KNOBS)
    knob.write(vdev, knob.parse(key, text))


def _decimal(value: float | str) -> str:
    """A text as it is. No exponent, no rounding above a nanosecond."""
    if isinstance(value, str):
        return value
    return f"{value:.9f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(int(value))
