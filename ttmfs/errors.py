"""The one exception family of ttmfs: an errno and a sentence that a person can act on.

Raised where the trouble is found; turned into a FUSE reply, a JSON result and a line of `error_log` at one
place (`ttmfs.fs`). The codes are the kernel's own, at the kernel's own places.
"""

import errno as _errno
from collections.abc import Iterable
from difflib import get_close_matches


class TtmError(OSError):
    """A failed TTM call: `errno` says what kind, the message says why and what to do.

    >>> TtmError(errno.ENOMEM, "vram is full: evict something first").errno
    12
    """

    def __init__(self, errno: int, message: str) -> None:
        super().__init__(errno, message)

    @property
    def name(self) -> str:
        """The errno's symbolic name, as in `ENOMEM`."""
        return _errno.errorcode.get(self.errno or 0, str(self.errno))

    @property
    def message(self) -> str:
        """The sentence, without the number that OSError's `str` puts before it."""
        return str(self.strerror)


def called(name: str) -> str:
    """What a sentence calls a BO: its name, in quotes, if it has one."""
    return repr(name) if name else "a BO"


def meant(word: str, known: Iterable[str]) -> str:
    """Which of these somebody may have meant by a word that is none of them; "" when none is near."""
    near = get_close_matches(word, list(known), 1)
    return near[0] if near else ""


def no_such(word: str, what: str, known: Iterable[str], more: str = "") -> TtmError:
    """EINVAL for a word that a vocabulary does not have: what it may have been, and what there is, `more` besides.

    >>> no_such("vrm", "region", ("gtt", "vram")).message
    "'vrm' is no region: did you mean vram? Say one of gtt vram"
    """
    words = list(known)
    near = meant(word, words)
    hint = f"did you mean {near}? Say" if near else "say"
    said = f"{word[:80]!r} is no {what}: {hint}" if word else f"no {what} is named: say"
    return TtmError(_errno.EINVAL, f"{said} one of {' '.join(words)}{more}")
