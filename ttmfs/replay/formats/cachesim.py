"""The formats of cache simulators: text of `time,id,bytes` with or without a header, and libCacheSim's oracleGeneral.

oracleGeneral is records of 24 bytes, little endian: time (u32), id (u64), bytes (u32), number of the next request for
the same id (i64; -1 or the largest number: none). What comes next is found anew here, so it is not read.
"""

import csv
import errno
from typing import Final

import numpy as np

from ttmfs.errors import TtmError
from ttmfs.replay.trace import NEVER, Builder, Trace

RECORD: Final = np.dtype([("time", "<u4"), ("id", "<u8"), ("bytes", "<u4"), ("next", "<i8")])

_IDS: Final = ("id", "obj_id", "object_id", "objid", "object", "obj", "key", "block", "lba", "addr", "address")
_BYTES: Final = ("bytes", "size", "obj_size", "object_size", "objsize", "length", "len")
_TIMES: Final = ("time", "timestamp", "ts", "clock_time", "real_time")


# -- text --------------------------------------------------------------------------------------------------------------


def looks_like_csv(head: bytes) -> bool:
    """Is its first line a header that names an id, or are its first fields numbers?"""
    if b"\0" in head:
        return False
    lines = [line for line in head.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return False
    fields = _split(lines[0], _delimiter(lines[0]))
    return len(fields) >= 2 and (_header(fields) is not None or _is_number(fields[0]))


def read_csv(path: str, data: bytes, block_bytes: int) -> Trace:
    """Columns by the header's names, else time, id, bytes in this order. TtmError(EINVAL) naming the line."""
    lines = data.decode("utf-8", "replace").splitlines()
    first = next(line for line in lines if line.strip())
    delimiter = _delimiter(first)
    columns = _header(_split(first, delimiter))
    builder = Builder(path, "csv")
    id_column, bytes_column = columns or (1, 2 if len(_split(first, delimiter)) > 2 else None)
    waits_for_header = columns is not None
    for number, fields in enumerate(csv.reader(lines, delimiter=delimiter), 1):
        if not fields:
            continue
        if waits_for_header:
            waits_for_header = False
            continue
        if fields[0].startswith("#"):
            continue
        try:
            size = block_bytes if bytes_column is None else int(fields[bytes_column])
            if size < 0:
                raise ValueError(f"{size} bytes")
            builder.use(fields[id_column].strip(), size)
        except (ValueError, IndexError) as error:
            raise TtmError(errno.EINVAL, f"{path}:{number} is no request of time,id,bytes ({error})") from None
    return builder.build()


def _delimiter(line: str) -> str:
    return max(",\t;|", key=line.count)


def _split(line: str, delimiter: str) -> list[str]:
    return [field.strip().lstrip("#").strip().strip('"').lower() for field in line.split(delimiter)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(fields: list[str]) -> tuple[int, int | None] | None:
    """Columns of id and bytes (None: not there); None when this is no header."""
    ids = [number for number, name in enumerate(fields) if name in _IDS]
    sizes = [number for number, name in enumerate(fields) if name in _BYTES]
    return (ids[0], sizes[0] if sizes else None) if ids else None


# -- oracleGeneral -----------------------------------------------------------------------------------------------------


def looks_like_oracle(head: bytes) -> bool:
    """Do times never go back, has every object a size, and does what comes next come later?

    The format has no mark of its own, so all records of the beginning must say so.
    """
    records = np.frombuffer(head[: len(head) // RECORD.itemsize * RECORD.itemsize], dtype=RECORD)
    if not len(records) or b"\0" not in head:
        return False
    later = records["next"] > np.arange(len(records))
    none = (records["next"] == -1) | (records["next"] == -2) | (records["next"] == NEVER)
    times = records["time"].astype(np.int64)
    return bool((np.diff(times) >= 0).all() and (records["bytes"] > 0).all() and (later | none).all())


def read_oracle(path: str, data: bytes, block_bytes: int) -> Trace:
    """TtmError(EINVAL) when it is cut off within a record."""
    del block_bytes
    if len(data) % RECORD.itemsize:
        raise TtmError(errno.EINVAL, f"{path} looks like oracleGeneral, but ends within a record of 24 bytes")
    records = np.frombuffer(data, dtype=RECORD)
    ids, objects = np.unique(records["id"], return_inverse=True)
    sizes = np.zeros(len(ids), dtype=np.int64)
    np.maximum.at(sizes, objects, records["bytes"].astype(np.int64))
    return Trace(path, "oracleGeneral", objects.astype(np.int32), [str(number) for number in ids], sizes)
