"""The child process that touches the mount, so that its parent cannot hang in it.

Run by access.Access as a script, without site-packages. Requests come on standard input and answers go to standard
output, both as an 8-byte length and a pickle. A request is (what, arguments...); an answer is ("ok", value) or
("errno", number). A system call that never returns holds this process only.

`python toucher.py stream PATH` instead copies PATH to standard output for ever (a trace_pipe), and ends when its
standard input does.
"""

import errno
import mmap
import os
import pickle
import select
import struct
import sys
import time
from typing import Any

_CHUNK = 1 << 20


def read(path: bytes, limit: int) -> bytes:
    """Up to `limit` bytes of a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        out = bytearray()
        while len(out) < limit and (piece := os.read(fd, min(_CHUNK, limit - len(out)))):
            out += piece
        return bytes(out)
    finally:
        os.close(fd)


def read_many(top: bytes, names: list[bytes], leaf: bytes, limit: int) -> list[bytes | int]:
    """The file `leaf` in each of these folders below `top`, up to `limit` bytes; where one fails, its errno.

    A mount asks its daemon at every step of a path and for every read, so there is one step less, and no second read
    to see the end: a read that is shorter than asked was the last.
    """
    out: list[bytes | int] = []
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            try:
                fd = os.open(os.path.join(name, leaf), os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
                try:
                    out.append(os.read(fd, limit))
                finally:
                    os.close(fd)
            except OSError as error:
                if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                    raise
                out.append(error.errno or errno.EIO)
    finally:
        os.close(folder)
    return out


def write(path: bytes, data: bytes) -> None:
    """One write into a command file, as a shell does it."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def transact(path: bytes, data: bytes) -> tuple[int, bytes]:
    """Write into a command file opened for both, and read the result back: (errno or 0, the JSON lines)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        code = 0
        try:
            os.write(fd, data)
        except OSError as error:
            code = error.errno or errno.EIO
        out = b""
        while piece := os.read(fd, 65536):
            out += piece
        return code, out
    finally:
        os.close(fd)


def walk(top: bytes) -> list[bytes]:
    """The paths of all files below `top`, relative to it, folders in order; symbolic links are none, and what vanishes
    meanwhile is left out.
    """
    return [path for _ino, path in walk_inodes(top)]


def walk_inodes(top: bytes) -> list[tuple[int, bytes]]:
    """As `walk`, with the inode number of each."""
    found: list[tuple[int, bytes]] = []
    folders = [b""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(os.path.join(top, folder)) as entries:
                here = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder and error.errno == errno.ENOENT:
                continue
            raise
        for entry in here:
            path = os.path.join(folder, entry.name)
            if entry.is_dir(follow_symlinks=False):
                folders.append(path)
            elif entry.is_file(follow_symlinks=False):
                found.append((entry.inode(), path))
    return found


def names(path: bytes) -> list[bytes]:
    """The names in a folder."""
    return sorted(os.listdir(path))


def real(path: bytes) -> tuple[bytes, bool, bool]:
    """(the path without symbolic links, whether it is there, whether it is a folder)."""
    where = os.path.realpath(path)
    return where, os.path.lexists(where), os.path.isdir(where)


def drain(path: bytes) -> bytes:
    """What is in a trace_pipe by now; takes it out."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        out = bytearray()
        while piece := os.read(fd, _CHUNK):
            out += piece
        return bytes(out)
    except BlockingIOError:
        return bytes(out)
    finally:
        os.close(fd)


# -- BO files ----------------------------------------------------------------------------------------------------------


def make(path: bytes, size: int | None) -> None:
    """A file, if it is not there, of `size` bytes (None: as it is); folders above it are made."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if size is not None:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def size_of(path: bytes) -> int:
    """Bytes of a file."""
    return os.stat(path).st_size


def pread(path: bytes, size: int, offset: int) -> bytes:
    """`size` bytes (-1: all that follow) from `offset`; fewer at the end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        end = offset + size if size >= 0 else max(offset, os.fstat(fd).st_size)
        out = bytearray()
        while (at := offset + len(out)) < end and (piece := os.pread(fd, min(_CHUNK, end - at), at)):
            out += piece
        return bytes(out)
    finally:
        os.close(fd)


def pwrite(path: bytes, data: bytes, offset: int) -> None:
    """All of `data` at `offset`."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done : done + _CHUNK], offset + done)
    finally:
        os.close(fd)


def unlink(path: bytes) -> None:
    """The name of a file is gone."""
    os.unlink(path)


def mkdir(path: bytes) -> None:
    """A folder, if it is not there."""
    try:
        os.mkdir(path)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def rmdir(path: bytes) -> None:
    """A folder is gone."""
    os.rmdir(path)


_mapped: dict[bytes, mmap.mmap] = {}
"""By path. A mapping is kept, as a program keeps it: what is cached in it stays."""


def touch(path: bytes, offset: int, length: int, data: bytes | None) -> tuple[bytes, float]:
    """Read `length` bytes at `offset` through a shared mapping, or store `data` there: (bytes, seconds it took).

    ENXIO beyond the end. SIGBUS ends this process, as it does any program.
    """
    mapping = _mapped.get(path)
    if mapping is None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            mapping = _mapped[path] = mmap.mmap(fd, 0)
        except ValueError:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO)) from None
        finally:
            os.close(fd)
    if offset + (length if data is None else len(data)) > len(mapping):
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    started = time.monotonic()
    if data is None:
        data = mapping[offset : offset + length]
    else:
        mapping[offset : offset + len(data)] = data
    return data, time.monotonic() - started


def pid() -> int:
    """Of this process."""
    return os.getpid()


_CALLS = {
    call.__name__: call
    for call in (
        *(read, read_many, write, transact, walk, walk_inodes, names, real, drain),
        *(make, size_of, pread, pwrite, unlink, mkdir, rmdir, touch, pid),
    )
}


def _exactly(count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def serve() -> None:
    """Answer requests until standard input ends."""
    while True:
        (length,) = struct.unpack("!Q", _exactly(8))
        what, *arguments = pickle.loads(_exactly(length))
        answer: tuple[str, Any]
        try:
            answer = ("ok", _CALLS[what](*arguments))
        except OSError as error:
            answer = ("errno", error.errno or errno.EIO)
        data = pickle.dumps(answer)
        _write_all(struct.pack("!Q", len(data)) + data)


def stream(path: bytes) -> None:
    """Copy a trace_pipe to standard output as it comes, until it ends (the mount goes down) or standard input does.

    The pipe is opened O_NONBLOCK: a READ that is parked in the daemon could not be taken back when this ends. What is
    in it when standard input ends is still taken, so that a recording has its last events.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    waiting.register(0, select.POLLIN)
    parent = select.poll()
    parent.register(0, select.POLLIN)
    sys.stderr.write("open\n")
    sys.stderr.flush()
    while True:
        ended = bool(parent.poll(0))
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            if ended:
                return
            waiting.poll(200)
            # Also where poll calls a file ready that is not: no busy loop.
            parent.poll(10)
            continue
        if not data:
            return
        _write_all(data)


def main() -> None:
    """See the module."""
    try:
        if sys.argv[1:2] == ["stream"]:
            stream(os.fsencode(sys.argv[2]))
        else:
            serve()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except OSError as error:
        sys.stderr.write(f"errno {error.errno}\n")


if __name__ == "__main__":
    main()
