"""A ttmfs device through its mount and nothing else: `Device` for Python, and the programs ttm-ls, ttm-top, ttm-map,
ttm-trace, ttm-storm."""

from ttm_tools.bos import BufferObject, Client, Touch
from ttm_tools.errors import CommandFailed, MountError
from ttm_tools.fence import Fence
from ttm_tools.kit import Device, Failure, Settings, Trace
from ttm_tools.traceformat import Event
from ttm_tools.version import __version__
from ttm_tools.vms import Vm

__all__ = [
    "BufferObject",
    "Client",
    "CommandFailed",
    "Device",
    "Event",
    "Failure",
    "Fence",
    "MountError",
    "Settings",
    "Touch",
    "Trace",
    "Vm",
    "__version__",
]
