"""Choice: which policy a device shall have, as an option of the command line says it."""

import errno
import os
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.policy.api import Kind
from ttmfs.policy.parameters import parse_spec

NOBODY: Final[dict[Kind, str]] = {"evict": "lru", "prefetch": "none", "promote": "none"}
"""The policy of a device that has none: its own ways, without a hook."""


def parse_choice(text: str) -> tuple[Kind, tuple[str, ...]]:
    """`evict:REGION=NAME[,key=value…]`, `prefetch=NAME`, `promote=NAME`: the kind, and the words that choose it.

    The path of a file is one from where this process stands. TtmError(EINVAL).
    """
    what, equals, rest = text.partition("=")
    said, colon, region = what.partition(":")
    kind = next((kind for kind in NOBODY if kind == said), None)
    if kind is None or not equals or not rest or bool(colon) != (kind == "evict") or (colon and not region):
        raise TtmError(
            errno.EINVAL,
            f"{text[:80]!r}: say evict:REGION=NAME[,key=value…], prefetch=NAME or promote=NAME, as in evict:vram=sieve",
        )
    words = rest.split(",")
    spec = parse_spec(kind, words)
    if spec.where is not None and spec.where[0].endswith(".py"):
        words[0] = f"{os.path.abspath(spec.where[0])}:{spec.where[1]}"
    return kind, (*((region,) if colon else ()), *words)
