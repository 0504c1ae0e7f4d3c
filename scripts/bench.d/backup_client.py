"""The client of `scripts/bench backup`: backup_client.py MNT WHAT SIZE ROUNDS [FOLDER], a JSON line of seconds a round.

`loop` needs no mount (MNT is the kind of store then): it drives a device in this process and says how long its loop was
ever held, in seconds, with and without a backup going on.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

from move_client import Bo, Copy, alternating, say, scattered

MIB = 1 << 20


def there_and_back(bo: Bo, rounds: int, copy: Copy) -> None:
    """Backup and restore alternately."""
    for number in range(rounds + 1):  # the first one warms up: it touches memory for the first time
        backup = bo.timed("backup")
        restore = bo.timed("restore")
        if number:
            say(backup=backup, restore=restore, copy=copy.seconds())


def order_9(mount: str, size: int, rounds: int) -> None:
    """One BO of large pages that nobody has cached."""
    bo = Bo(mount, "stored", size)
    bo.fill()
    bo.command("unmap", "")
    bo.close()
    there_and_back(bo, rounds, Copy(size))


def fragmented(mount: str, size: int, rounds: int) -> None:
    """Two BOs whose pages alternate fill the memory; one goes, and finds its single pages when it comes back."""
    bo = alternating(mount, "stored", size)
    there_and_back(bo, rounds, Copy(size))
    scattered(bo)


def against_cp(mount: str, size: int, rounds: int, folder: Path) -> None:
    """Backup and restore, and what `cp` takes for a file of this size on the same disk, alternately."""
    bo = Bo(mount, "stored", size)
    bo.fill()
    bo.command("unmap", "")
    bo.close()
    source, target = folder / "cp source", folder / "cp target"
    block = os.urandom(MIB)
    with source.open("wb") as file:
        for _ in range(size // MIB):
            file.write(block)
    os.sync()

    def warm() -> None:
        # Memory for the page cache that the host of this host has not taken back: the same for both.
        target.unlink(missing_ok=True)
        os.sync()
        with target.open("wb") as file:
            for _ in range(size // MIB):
                file.write(block)
        target.unlink()

    for number in range(rounds + 1):
        samples = {}
        for name in ("backup", "restore"):
            warm()
            samples[name] = bo.timed(name)
            warm()
            start = time.perf_counter()
            subprocess.run(["cp", "--sparse=never", "--reflink=never", str(source), str(target)], check=True)
            samples[f"cp_{name}"] = time.perf_counter() - start
        if number:
            say(**samples)


def fill(mount: str, size: int) -> None:
    """The BO that is faulted, and the one that goes and comes."""
    for name in ("faulted", "mover"):
        bo = Bo(mount, name, size)
        bo.fill()
        bo.command("unmap", "")
        bo.close()


def mover(mount: str, size: int) -> None:
    """Back a BO up and bring it back until stdin is closed."""
    bo = Bo(mount, "mover", size)
    bo.close()
    while not select.select([0], [], [], 0)[0]:
        bo.timed("backup")
        say()
        bo.timed("restore")


def loop(store: str, size: int, rounds: int) -> None:
    """The longest time between two turns of a task that does nothing else, idle and during backup and restore."""
    import trio  # noqa: PLC0415 - the other measurements need only the mount

    from ttmfs.driver import calls  # noqa: PLC0415
    from ttmfs.driver.config import Config  # noqa: PLC0415
    from ttmfs.driver.device import VirtualDevice  # noqa: PLC0415
    from ttmfs.ttm import access  # noqa: PLC0415
    from ttmfs.ttm.backup import BackupFlags  # noqa: PLC0415
    from ttmfs.ttm.context import OperationContext  # noqa: PLC0415

    most = 0.0

    async def heart() -> None:
        nonlocal most
        # The thread's own time: what other processes take from it is not what the device does to its loop.
        last = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            now = time.thread_time()
            most = max(most, now - last)
            last = now

    async def longest() -> float:
        nonlocal most
        found, most = most, 0.0
        await trio.lowlevel.checkpoint()  # what is done between two measurements is not part of the second
        return found

    async def measure() -> None:
        vdev = VirtualDevice(Config(memory=3 * size, swap=3 * size, swap_store=store))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(vdev.run)
                bo = vdev.create_bo("stored")
                block = os.urandom(MIB)
                for offset in range(0, size, MIB):
                    await access.write(bo, offset, block)
                nursery.start_soon(heart)
                for number in range(rounds + 1):
                    found = {}
                    for name in ("backup", "restore"):
                        await longest()
                        if name == "backup":
                            await calls.backup_one(vdev, bo, BackupFlags(), OperationContext())
                        else:
                            await calls.restore(vdev, bo, OperationContext())
                        found[name] = await longest()
                    await trio.sleep(0.2)
                    found["idle"] = await longest()
                    if number:
                        say(**found)
                nursery.cancel_scope.cancel()
        finally:
            vdev.close()

    trio.run(measure)


def main() -> None:
    """Dispatch."""
    mount, what, size, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if what == "against-cp":
        against_cp(mount, size, rounds, Path(sys.argv[5]))
    elif what in ("fill", "mover"):
        {"fill": fill, "mover": mover}[what](mount, size)
    else:
        {"order-9": order_9, "fragmented": fragmented, "loop": loop}[what](mount, size, rounds)


if __name__ == "__main__":
    main()
