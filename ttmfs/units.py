"""Pages, bytes and how people write them: `64K`, `256M`, `0x1000`, always binary."""

import errno
import re
from typing import Final

from ttmfs.errors import TtmError

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
"""Bits of an offset within its page."""
MAX_ORDER: Final = 10
"""Largest page order of the system's page allocator (the kernel's MAX_PAGE_ORDER on x86): 4 MiB."""

_SUFFIX: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE: Final = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]+)([KMGT]?)(?:i?B)?", re.IGNORECASE)
_MOST_DIGITS: Final = 64
"""Longer numbers are beyond any limit, leading zeros included; Python itself refuses those of some thousand digits."""
_LIMIT: Final = 1 << 62


def parse_size(text: str) -> int:
    """Bytes from `4096`, `0x1000`, `64K`, `256M`, `1G`, `1T` (binary).

    Raises TtmError(EINVAL) naming the word when it is no such number, or one beyond 2**62.
    """
    match = _SIZE.fullmatch(text)
    if match is None or not text.isascii():
        raise TtmError(errno.EINVAL, f"{text[:40]!r} is no size: write it as 4096, 0x1000, 64K, 256M or 1G")
    if len(match[1]) > _MOST_DIGITS:
        raise TtmError(errno.EINVAL, f"{text[:40]!r}… has {len(match[1])} digits: it is too large a number")
    value = int(match[1], 0 if match[1][:2].lower() == "0x" else 10) << _SUFFIX[match[2].upper()]
    if value > _LIMIT:
        raise TtmError(errno.EINVAL, f"{text[:40]!r} is too large a number")
    return value


def format_size(count: int) -> str:
    """`count` bytes with the largest binary suffix that divides it: 65536 is `64K`, 4097 is `4097`."""
    for suffix, shift in (("T", 40), ("G", 30), ("M", 20), ("K", 10)):
        if count and count % (1 << shift) == 0:
            return f"{count >> shift}{suffix}"
    return str(count)


def pages_of(size: int) -> int:
    """Pages that `size` bytes need, rounded up."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT
