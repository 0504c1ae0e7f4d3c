"""Words of a command line: the shell's quoting (shlex), with `\\ooo` for bytes that would end a word or a list."""

import errno
import os
import re
import shlex
from typing import Final

from ttmfs.errors import TtmError

MAX_WRITE: Final = 64 << 10
"""Bytes of one write. The kernel cuts writes at 1 MiB, and a cut line would be another command."""

MAX_NAMES: Final = 1024
"""BOs that one command names."""

_OCTAL: Final = re.compile(r"\\([0-3][0-7]{2})")
_BASE: Final = 0x100000
"""Escaped bytes travel through shlex as characters of a private plane, so that it does not see a space or comma."""
_MARKED: Final = re.compile("[\U00100000-\U001000ff]")
_QUOTED_MARK: Final = re.compile(r"\\U001000([0-9a-f]{2})")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./-]*")
"""Names with nothing to escape, as most are."""

NO_NAMES: Final = ("-", "(ghost)", "(pool)")
"""What stands in the BO column of a table where there is no BO."""


def _mark(raw: bytes) -> str:
    return "".join(chr(_BASE + byte) for byte in raw)


def is_plain(line: str) -> bool:
    """Are blanks all that means something in this line?"""
    return line.isascii() and line.isprintable() and not any(char in line for char in "\\'\"")


def split_words(line: str) -> list[str]:
    """The words of one line. Escaped bytes stay marked until `unescape`. TtmError(EINVAL) for unbalanced quotes."""
    if "\0" in line:
        raise TtmError(errno.EINVAL, "a command is text: it contains a NUL byte")
    if is_plain(line):
        return line.split()  # as shlex does, in an eighth of the time
    # A character that looks like a mark travels as the marks of its own bytes.
    marked = _MARKED.sub(lambda match: _mark(match[0].encode()), line)
    marked = _OCTAL.sub(lambda match: chr(_BASE + int(match[1], 8)), marked)
    try:
        return shlex.split(marked)
    except ValueError as error:
        raise TtmError(errno.EINVAL, f"cannot split {line[:80]!r} into words: {error}") from None


def unescape(word: str) -> str:
    """The word with its escaped bytes put in."""
    if not _MARKED.search(word):
        return word
    raw = b"".join(
        bytes([ord(char) - _BASE]) if _MARKED.match(char) else char.encode("utf-8", "surrogateescape")
        for char in word
    )
    return os.fsdecode(raw)


def split_names(word: str) -> list[str]:
    """NAME[,NAME…]. TtmError: EINVAL for an empty name, E2BIG for more than MAX_NAMES."""
    parts = word.split(",")
    if len(parts) > MAX_NAMES:
        raise TtmError(errno.E2BIG, f"{len(parts)} names: name at most {MAX_NAMES} at a time")
    names = [unescape(part) for part in parts]
    if not all(names):
        raise TtmError(errno.EINVAL, f"{word[:80]!r}: a name is empty; names are separated by single commas")
    return names


def _octal(text: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(text))


def _escaped(text: str, also: str) -> str:
    """What cannot be printed, and the characters of `also`, as octal bytes."""
    return "".join(char if char.isprintable() and char not in also else _octal(char) for char in text)


def escape(name: str) -> str:
    """`name` as one word that `unescape` turns back: blanks, commas, quotes and what cannot be printed as `\\ooo`.

    A name that tables use for what is no BO (NO_NAMES) is escaped too.
    """
    if name in NO_NAMES:
        return _octal(name[0]) + name[1:]
    return name if _PLAIN.fullmatch(name) else _escaped(name, " \\,'\"")


def cell(text: str) -> str:
    """A text for people as one field between tabs: what cannot be printed as `\\ooo`."""
    return text if text.isprintable() else _escaped(text, "")


def for_shell(path: str) -> str:
    """`path` as one word that can be pasted into a shell."""
    if path.isprintable():
        return shlex.quote(path)
    quoted = _escaped(path, "\\'")
    return f"$'{quoted}'"


def readable(message: str) -> str:
    r"""A message that quotes a word of `split_words`: its marked bytes as the `\ooo` that was written."""
    return _QUOTED_MARK.sub(lambda match: f"\\{int(match[1], 16):03o}", message)
