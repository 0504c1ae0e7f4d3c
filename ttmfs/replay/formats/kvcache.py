"""Requests to a language model with the blocks of their key-value cache: lines of JSON with `hash_ids`.

Equal ids are equal blocks of tokens, so a block that is still there need not be computed again. Each block is a BO,
used in the order in which the request names it.
"""

import errno
import json
from typing import Any

from ttmfs.errors import TtmError
from ttmfs.replay.trace import Builder, Trace


def looks_so(head: bytes) -> bool:
    """Is the first line an object that has hash_ids (or is too long to be seen whole, but begins so)?"""
    line = head.lstrip().split(b"\n", 1)[0]
    return line.startswith(b"{") and b'"hash_ids"' in line


def read(path: str, data: bytes, block_bytes: int) -> Trace:
    """Each block is a BO of `block_bytes`. TtmError(EINVAL) naming the line that is none."""
    builder = Builder(path, "kv-cache jsonl")
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            request: Any = json.loads(line)
            blocks = request["hash_ids"]
            for block in blocks:
                builder.use(block if isinstance(block, int) else str(block), block_bytes)
        except (ValueError, KeyError, TypeError) as error:
            raise TtmError(
                errno.EINVAL, f"{path}:{number} is no request with hash_ids ({type(error).__name__}: {error})"
            ) from None
    return builder.build()
