"""What the page may have the mount do, when it was started with --allow-commands."""

import errno
import re
from typing import Any, Final

from ttm_tools.device import Device
from ttm_tools.errors import CommandFailed

_OF_A_BO: Final = frozenset(["validate", "evict", "pin", "unpin", "unmap", "backup", "restore", "swapout", "defrag"])
_ATTRIBUTES: Final = frozenset(["placement", "priority", "prefault", "madvise", "group"])
_OF_THE_DEVICE: Final = frozenset(["evict", "defrag", "shrink", "backup", "swapout"])
_OF_POLICIES: Final = frozenset(["evict", "prefetch", "promote"])
_OF_A_GROUP: Final = frozenset(["dmem.max", "dmem.low", "dmem.min"])
_SHIPPED: Final = re.compile(r"[\w=., -]*")


def is_allowed(file: str, words: str) -> bool:
    """Whether the page may write these words into this file below the mount: one line, into a file of the tables above.

    Policies by their name only: a path or a module would be code.
    """
    parts = file.split("/")
    if "\n" in words or "\0" in file or any(part in ("", ".", "..") for part in parts):
        return False
    top, name = parts[0], parts[-1]
    if top == "objects":
        return len(parts) > 2 and name in _OF_A_BO | _ATTRIBUTES
    if top == "groups":
        return len(parts) > 2 and name in _OF_A_GROUP
    if len(parts) != 2:
        return False
    return (top == "ctl" and name in _OF_THE_DEVICE) or (
        top == "policies" and name in _OF_POLICIES and _SHIPPED.fullmatch(words) is not None
    )


def run(device: Device, file: str, words: str) -> dict[str, Any]:
    """Do it: the command's own result, or {"ok": False, "errno", "error"}. MountError when nobody answers."""
    try:
        if file.startswith("groups/"):
            device.write(file, words)
            return {"ok": True}
        results = device.command(file, words)
    except CommandFailed as error:
        return {"ok": False, "errno": error.code, "error": error.why}
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        return {"ok": False, "errno": name, "error": device.last_error().split("\t")[-1] or error.strerror}
    return results[-1] if results else {"ok": True}
