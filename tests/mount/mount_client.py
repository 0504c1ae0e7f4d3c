"""A client process of a mount: runs snippets of Python that arrive as JSON lines, one answer each.

An answer is {"value": …} or {"errno": N}, always with the seconds it took. Bytes travel as latin-1 text in
{"bytes": …}. Whatever hangs or gets SIGBUS here hangs or ends this process only. `mount_client.py --forks DESCRIPTOR`
is the process that clients are forked from (forks.py).
"""

import ctypes
import errno
import hashlib
import json
import mmap
import os
import sys
import threading
import time
import traceback
from typing import Any

MNT = ""
"""Where it is mounted."""
_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Any:
    """Absolute path of a name below the mount; bytes stay bytes."""
    return os.path.join(os.fsencode(MNT), name) if isinstance(name, bytes) else os.path.join(MNT, name)


def command(name: Any, text: str | bytes) -> int | None:
    """Write `text` into a command file in one write; the errno, or 0. A write of nothing would be no command."""
    assert text
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    fd = os.open(path(name), os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(fd, data)
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
    return 0


def transact(name: Any, text: str | bytes) -> list[Any]:
    """Write `text` into a command file opened O_RDWR; (errno or 0, [JSON lines read back])."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    fd = os.open(path(name), os.O_RDWR)
    try:
        code: int | None = 0
        try:
            os.write(fd, data)
        except OSError as error:
            code = error.errno
        out = b""
        while piece := os.read(fd, 65536):
            out += piece
        return [code, [json.loads(line) for line in out.splitlines()]]
    finally:
        os.close(fd)


def slurp(name: Any) -> str:
    """All of a small text file."""
    with open(path(name), encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def make(name: Any, size: int, fill: int | None = None) -> None:
    """A BO of `size` bytes, all of them `fill` if that is given."""
    fd = os.open(path(name), os.O_CREAT | os.O_RDWR, 0o644)
    os.ftruncate(fd, size)
    step = 1 << 20
    for start in range(0, size if fill is not None else 0, step):
        part = min(step, size - start)
        if os.pwrite(fd, bytes([fill or 0]) * part, start) != part:
            os.close(fd)
            raise OSError(errno.EIO, "only a part was written")
    os.close(fd)


def opened(name: Any, flags: int = os.O_RDWR) -> int:
    """A descriptor."""
    return os.open(path(name), flags, 0o644)


def mapped(fd: int, size: int, flags: int = mmap.MAP_SHARED, advice: int = mmap.MADV_RANDOM) -> mmap.mmap:
    """A mapping; MADV_RANDOM, so that one touch is one READ of one page."""
    area = mmap.mmap(fd, size, flags)
    area.madvise(advice)
    return area


def direct(fd: int, offset: int, size: int) -> bytes:
    """pread into page-aligned memory, as O_DIRECT wants it."""
    buffer = mmap.mmap(-1, (size + 4095) & ~4095)
    count = os.preadv(fd, [memoryview(buffer)[:size]], offset)
    return buffer[:count]


def sync_mapping(area: mmap.mmap) -> int:
    """msync(MS_SYNC) of all of a mapping."""
    area.flush()
    return 0


def renameat2(old: Any, new: Any, flags: int) -> int:
    """renameat2; the errno, or 0."""
    here = -100
    done = _libc.renameat2(here, os.fsencode(path(old)), here, os.fsencode(path(new)), flags)
    return ctypes.get_errno() if done else 0


def digest(data: bytes) -> str:
    """A short name of some bytes."""
    return hashlib.sha1(data).hexdigest()


def _encode(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.decode("latin-1")}
    return str(value)


def _run(code: str, names: dict[str, Any]) -> Any:
    started = time.monotonic()
    try:
        try:
            compiled = compile(code, "<client>", "eval")
        except SyntaxError:
            exec(code, names)
            answer: dict[str, Any] = {"value": None}
        else:
            answer = {"value": eval(compiled, names)}
    except OSError as error:
        answer = {"errno": error.errno}
    except Exception:
        answer = {"traceback": traceback.format_exc()}
    answer["seconds"] = time.monotonic() - started
    return answer


def main(mountpoint: str) -> None:
    """Until the input ends."""
    globals()["MNT"] = mountpoint
    names = dict(globals())
    names["threading"] = threading
    names["errno"] = errno
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line), names), default=_encode), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tests.mount.forks import forked

    main(*forked(int(sys.argv[2])))
