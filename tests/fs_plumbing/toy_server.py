"""A small pyfuse3 server for these tests: `bo` (bytes in memory), `park` (its READs wait until released).

Run as a process: `toy_server.py MOUNTPOINT '{"size": ..., "loop": "fast"|"stock", ...}'`. One JSON command a line on
stdin, one JSON answer a line on stdout, each command in its own task. `.ino-N` opens inode N under any name.
"""

import errno
import json
import logging
import mmap
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyfuse3
import trio

from ttmfs.fs.kernel import session_loop, tuning
from ttmfs.fs.kernel.inval import PageCache, SessionFd
from ttmfs.fs.kernel.watchdog import Watchdog

NAMES = {b"bo": 2, b"park": 3, b".ino-2": 2, b".ino-3": 3}


class StartedTasks(logging.Handler):
    """Counts the tasks pyfuse3 starts, from its debug messages."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "starting another worker" in record.msg


STARTED = StartedTasks()


class Toy(pyfuse3.Operations):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.memory = mmap.mmap(-1, size)
        self.view = memoryview(self.memory)
        self.parked = 0
        self.gate = trio.Event()
        self.counts = dict.fromkeys(("read", "write", "getattr", "open"), 0)
        self.max_write = 0
        self.aliases = True

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        self.counts["getattr"] += 1
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = stat.S_IFDIR | 0o777
            entry.attr_timeout = 0
        else:
            entry.st_mode = stat.S_IFREG | 0o666
            entry.st_size = self.size
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any = None) -> pyfuse3.EntryAttributes:
        if name not in NAMES or (name.startswith(b".ino") and not self.aliases):
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(NAMES[name])

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        self.counts["open"] += 1
        return pyfuse3.FileInfo(fh=inode)

    async def read(self, fh: Any, off: int, size: int) -> Any:
        self.counts["read"] += 1
        if fh == 3:
            self.parked += 1
            with trio.CancelScope(shield=True):
                await self.gate.wait()
            self.parked -= 1
        return self.view[off : min(off + size, self.size)]

    async def write(self, fh: Any, off: int, buf: bytes) -> int:
        self.counts["write"] += 1
        self.max_write = max(self.max_write, len(buf))
        self.view[off : off + len(buf)] = buf
        return len(buf)

    async def flush(self, fh: Any) -> None:
        pass

    async def release(self, fh: Any) -> None:
        pass


async def serve(mountpoint: str, options: dict[str, Any], toy: Toy, session: SessionFd) -> None:  # noqa: PLR0915
    alias = (lambda ino: f"{mountpoint}/.ino-{ino}") if options.get("alias", True) else None
    cache = PageCache(session, alias)
    watchdog = None
    done = trio.Event()

    def answer(number: int, **values: Any) -> None:
        os.write(1, json.dumps({"id": number, **values}).encode() + b"\n")

    async def command(number: int, name: str, arguments: dict[str, Any]) -> None:  # noqa: PLR0912
        if name == "inval":
            begin = time.perf_counter()
            try:
                known = await cache.invalidate(**arguments)
            except OSError as exc:
                answer(number, errno=exc.errno)
                return
            answer(number, errno=None, known=known, took=time.perf_counter() - begin, **vars(cache.statistics()))
        elif name == "inval_on_loop":
            try:
                cache._in_thread(2, 0, 0, False)
            except AssertionError:
                answer(number, refused=True)
        elif name == "fill":
            toy.view[:] = bytes([arguments["value"]]) * toy.size
            answer(number)
        elif name == "status":
            answer(
                number, parked=toy.parked, counts=toy.counts, max_write=toy.max_write, first=toy.memory[0],
                connected=session.connected, loop=vars(session_loop.statistics()),
                tasks=trio.lowlevel.current_statistics().tasks_living,
                waiting=tuning.waiting(session.connection), invals_of_2=cache.invalidations(2),
                started_tasks=STARTED.count, watchdog_lost=watchdog is not None and watchdog.lost,
            )  # fmt: skip
        elif name == "release":
            toy.gate.set()
            if not arguments.get("for_good"):
                toy.gate = trio.Event()
            answer(number)
        elif name == "aliases":
            toy.aliases = arguments["on"]
            answer(number)
        elif name == "terminate":
            toy.gate.set()
            pyfuse3.terminate()
        elif name == "cancel":
            toy.gate.set()
            done.set()
        elif name == "block":
            # Held up, one look at the descriptors, held up again: what was ready then may not be afterwards.
            time.sleep(arguments["seconds"])  # noqa: ASYNC251
            await trio.lowlevel.checkpoint()
            time.sleep(arguments["seconds"])  # noqa: ASYNC251
            answer(number)
        elif name == "spin_forever":
            answer(number)
            while True:
                pass
        else:
            answer(number, unknown=name)

    async def commands(nursery: trio.Nursery) -> None:
        pending = b""
        async with trio.lowlevel.FdStream(os.dup(0)) as stream:
            async for data in stream:
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    number, name, arguments = json.loads(line)
                    nursery.start_soon(command, number, name, arguments)
        done.set()

    async def main_loop(nursery: trio.Nursery) -> None:
        await pyfuse3.main(min_tasks=options.get("min_tasks", 4), max_tasks=options.get("max_tasks", 4096))
        done.set()

    async with trio.open_nursery() as nursery:
        if options.get("watchdog"):
            watchdog = Watchdog.start(mountpoint, timeout=options["watchdog"], log=options.get("log"))
            nursery.start_soon(watchdog.heartbeat)
        nursery.start_soon(commands, nursery)
        nursery.start_soon(main_loop, nursery)
        values = {"connection": session.connection, "fast": session_loop.statistics().fast}
        answer(0, **values, watchdog=watchdog.process.pid if watchdog else None, limits=options["limits"])
        await done.wait()
        nursery.cancel_scope.cancel()
    if watchdog is not None and not options.get("no_goodbye"):
        session.close()
        pyfuse3.close(unmount=True)
        watchdog.stop_clean()


def main() -> None:
    mountpoint, options = sys.argv[1], json.loads(sys.argv[2])
    toy = Toy(options.get("size", 1 << 20))
    mount_options = {"fsname=toy", "default_permissions"}
    pyfuse3.init(toy, mountpoint, mount_options)
    session = SessionFd(mountpoint)
    report = tuning.raise_background_limits(session.connection)
    if options.get("bdi"):
        report.merge(tuning.tune_bdi(session.connection))
        tuning.ReadAhead(session.connection).set_read_ahead(options["bdi"])
    options["limits"] = report.failed
    if options.get("count_tasks"):
        logger = logging.getLogger("pyfuse3")
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(STARTED)
    if options.get("loop", "fast") == "fast":
        session_loop.install(session.fd, spin_us=options.get("spin_us", 10))
    if options.get("timer", True):
        session_loop.start_freeze_timer(0.25)
    try:
        trio.run(serve, mountpoint, options, toy, session)
    finally:
        # The handler goes when the interpreter ends: a signal after that would end the process.
        session_loop.stop_freeze_timer()
    if not options.get("watchdog"):
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
