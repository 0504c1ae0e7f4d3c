"""Sizes and names as text."""

import fnmatch
import re
from typing import Final

_UNITS: Final = ("B", "K", "M", "G", "T")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def size_text(size: float) -> str:
    """Bytes for people: `512`, `64K`, `1.5M`, binary units, at most three digits and a point."""
    value = float(size)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    if unit == "B":
        return f"{value:.0f}"
    return (f"{value:.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")) + unit


def count_text(count: float) -> str:
    """A count for people: `999`, `12.3k`."""
    if abs(count) < 10000:
        return f"{count:.0f}"
    return f"{count / 1000:.1f}k" if count < 1e6 else f"{count / 1e6:.1f}m"


def shown(name: str) -> str:
    r"""A BO's name on a terminal and between tabs: control characters, backslashes and odd bytes as `\ooo`."""

    def octal(found: "re.Match[str]") -> str:
        return "".join(f"\\{byte:03o}" for byte in found[0].encode("utf-8", "surrogateescape"))

    return _UNSAFE.sub(octal, name)


def as_word(name: str) -> str:
    r"""A BO's name as one word of a command: what would end a word or a list of names as `\ooo`."""
    raw = name.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x21 <= byte < 0x7F and byte not in b"\\,'\"" else f"\\{byte:03o}" for byte in raw)


def matches(name: str, pattern: str) -> bool:
    """Whether a BO's name fits a pattern of ttm-ls: shell wildcards, on the whole path or on its last part."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], pattern)
