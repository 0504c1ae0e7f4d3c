"""Mount: one device served at one mountpoint, from the first check to the last unmount.

`serve` runs in the process that shall be the daemon: the arenas are made in it, after any fork. It says when the mount
is ready, ends on SIGTERM, SIGINT or an unmount, and leaves neither a mount nor a hung client behind. A watchdog
process owns the way out if it cannot.
"""

import contextlib
import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Final

import numpy.ma  # noqa: F401 - or np.unique would load it, when there may be no descriptor left
import pyfuse3
import trio

from ttmfs.driver.config import Config
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError
from ttmfs.fs.commands.command import Machine
from ttmfs.fs.commands.runner import Runner
from ttmfs.fs.commands.space_knobs import check_notifier_size
from ttmfs.fs.kernel import session_loop, tuning
from ttmfs.fs.kernel.attribute_cache import KernelAttributes
from ttmfs.fs.kernel.collector import Collector
from ttmfs.fs.kernel.device_loop import DeviceLoop, DeviceStatistics
from ttmfs.fs.kernel.handshake import BACKGROUND, Handshake
from ttmfs.fs.kernel.inval import PageCache, SessionFd
from ttmfs.fs.kernel.rights import Owner
from ttmfs.fs.kernel.sizes import KernelSizes
from ttmfs.fs.kernel.stand_in import StandIn
from ttmfs.fs.kernel.unmappers import BoPageCache, SpacePageCache
from ttmfs.fs.kernel.watchdog import Watchdog
from ttmfs.fs.requests.name import ALIAS_PREFIX
from ttmfs.fs.requests.name_cache import NameCache
from ttmfs.fs.requests.operations import Operations
from ttmfs.fs.requests.served import Served
from ttmfs.fs.tree.device import Tree
from ttmfs.fs.tree.observe import CLIENTS_KEY
from ttmfs.fs.tree.tasks import dump_on_signal
from ttmfs.svm.names import SpaceNames
from ttmfs.svm.spaces import Svm
from ttmfs.ttm.unmap import unmap_virtual

log = logging.getLogger(__name__)

MAX_TASKS: Final = 8192
"""Requests that may be under way at once; a task is cheap, and without a free one nobody reads /dev/fuse (H8)."""

MIN_TASKS: Final = 8

SPIN_US: Final = 80
"""How long the loop polls an idle descriptor before it parks. A loop that parks between two faults of a client is woken
late: on two otherwise idle processors a fault took 70 us with 10 us of polling and 22 us with 80."""


_SHUTDOWN_INVAL_SECONDS: Final = 10.0
_SHUTDOWN_PATIENCE_SECONDS: Final = 2.0
_CONNECTION_POLL_SECONDS: Final = 0.5
FS_NAME: Final = "ttmfs"


def check_mountpoint(mountpoint: str) -> str:
    """The absolute path of a directory that can be mounted on. TtmError that says what is missing."""
    path = os.path.realpath(mountpoint)
    for line in mounted_here():
        if line == path:
            raise TtmError(errno.EBUSY, f"{path} is a ttmfs mount already: `ttmfs umount {path}` takes it down")
        if path.startswith(f"{line}/"):
            # Its daemon would wait for the other one, and the other could not be unmounted: another mount is below it.
            raise TtmError(errno.EINVAL, f"{path} is inside the ttmfs mount {line}: mount on a directory of a disk")
    if not os.path.exists("/dev/fuse"):
        raise TtmError(errno.ENODEV, "/dev/fuse does not exist: load the module with `modprobe fuse`")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise TtmError(errno.ENOENT, "fusermount3 is missing: `apt-get install fuse3`")
    if os.geteuid() != 0 and not os.path.exists(tuning.MTAB):
        missing = f"{tuning.MTAB} is missing, fusermount3 could not unmount: as root, `{tuning.MEND_MTAB}`"
        raise TtmError(errno.ENOENT, missing)
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise TtmError(errno.EACCES, "no permission for /dev/fuse: as root, `chmod 666 /dev/fuse`")
    if not tuning.may_mount():
        raise TtmError(errno.EPERM, f"{tuning.NO_RIGHT_TO_MOUNT}: {tuning.MEND_RIGHT_TO_MOUNT}")
    if not os.path.lexists(path):
        raise TtmError(errno.ENOENT, f"{path} is no directory: `mkdir -p {path}`")
    if not os.path.isdir(path):
        raise TtmError(errno.ENOTDIR, f"{path} is no directory but a file: mount on an empty directory")
    if os.listdir(path):
        raise TtmError(errno.ENOTEMPTY, f"{path} is not empty: mount on an empty directory")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise TtmError(errno.EACCES, f"{path} is not yours to mount on: use a directory that you may write")
    return path


@contextlib.contextmanager
def _no_ticks() -> Iterator[None]:
    """libfuse waits for the program that mounts and takes an EINTR for a failure: the tick of a policy is one."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def mounted_here() -> list[str]:
    """Mountpoints of all ttmfs mounts, from mountinfo: never touches the mounts themselves."""
    return tuning.mountpoints(f"fuse.{FS_NAME}")


class Mount:
    """A mounted device. Make it after daemonizing."""

    def __init__(self, mountpoint: str, config: Config) -> None:
        self.mountpoint = mountpoint
        self.config = config
        notifier_size = check_notifier_size(config.svm_notifier_size)
        self.vdev = VirtualDevice(config)
        self.svm = Svm(self.vdev)
        self.svm.notifier_size = notifier_size
        uid, gid = os.geteuid(), os.getegid()
        self.vdev.ttm.accounts.exempt |= {uid}
        # As many again for commands and for whoever does not wait.
        self.vdev.ttm.max_parked = MAX_TASKS // 2
        mode = 0o1777 if config.allow_other else 0o755
        names = Namespace(self.vdev, uid=uid, gid=gid, mode=mode)
        self.machine = Machine(self.vdev, names, self.svm)
        self.spaces = SpaceNames(self.svm, names.new_ino, uid=uid, gid=gid, mode=mode)
        self.runner = Runner(self.machine, config.command_timeout, uid)
        self.tree = Tree(self.machine, self.runner, self.spaces, Owner(uid, gid))
        for kind, words in config.policies:
            self.vdev.policies.choose_now(kind, list(words))
        self.served = Served(self.tree)
        self.operations = Operations(self.served)
        self.collector = Collector(lambda: len(self.served.inodes) + len(self.vdev.ttm.bos))
        self.handshake: Handshake | None = None
        self.device_loop: DeviceLoop | None = None
        self.report: list[str] = []
        """What could not be tuned, as sentences."""

    def run(self, ready: Callable[[], None]) -> None:
        """Mount, call `ready`, serve until told to stop. TtmError when it cannot be mounted."""
        source = self.config.source.replace("\\", "\\\\").replace(",", "\\,")
        options = {f"fsname={source}", f"subtype={FS_NAME}", "default_permissions"}
        if self.config.allow_other:
            options.add("allow_other")
        try:
            with _no_ticks():
                pyfuse3.init(self.operations, self.mountpoint, options)
        except RuntimeError as error:
            raise TtmError(errno.EIO, f"cannot mount on {self.mountpoint}: {error}{self._mount_hint()}") from None
        session = SessionFd(self.mountpoint)
        watchdog: Watchdog | None = None
        at_the_end = contextlib.ExitStack()
        try:
            session_loop.start_freeze_timer()
            if not self.config.stock_loop:
                stand_in = StandIn(session.fd, session.device)
                at_the_end.callback(stand_in.close)
                self._install_loop(session, stand_in)
            if self.config.watchdog:
                watchdog = Watchdog.start(self.mountpoint, timeout=self.config.watchdog)
            trio.run(self._main, session, watchdog, ready)
        finally:
            session_loop.stop_freeze_timer()
            session_loop.uninstall()
            self.collector.stop()
            at_the_end.close()
            self._unmount(session)
            if watchdog is not None:
                watchdog.stop_clean()
            self.vdev.close()

    def _unmount(self, session: SessionFd) -> None:
        """End the session, and the mount where it is now: at its old place may be another's by now (libfuse would take
        that one), if a folder above was renamed or the mount was moved.
        """
        where = None
        as_ever = tuning.is_mounted_at(session.connection, self.mountpoint)
        # Once it is unmounted others may have its number.
        if not as_ever and session.connected:
            where = tuning.mountpoint_of(session.connection)
        session.close()
        pyfuse3.close(unmount=as_ever)
        if where is not None:
            tuning.lazy_unmount(where)

    def _install_loop(self, session: SessionFd, stand_in: StandIn) -> None:
        """The wait that polls, and what is agreed on at INIT; then streams of WRITEs go through the device loop."""
        polls = session_loop.install(session.fd, spin_us=SPIN_US)

        def agreed(max_write: int) -> None:
            if polls:
                read_through = session_loop.read_through
                self.device_loop = DeviceLoop(session.device, stand_in, self.operations, max_write, read_through)
                self.operations.data.large_write = self.device_loop.large_write

        self.handshake = Handshake(session.device, stand_in, agreed)
        self.handshake.install()

    def _mount_hint(self) -> str:
        if self.config.allow_other and os.geteuid() != 0:
            return "; --allow-other without root needs user_allow_other in /etc/fuse.conf"
        return "; where AppArmor is, it keeps a container from mounting without --security-opt apparmor=unconfined"

    async def _main(self, session: SessionFd, watchdog: Watchdog | None, ready: Callable[[], None]) -> None:
        cache = PageCache(session, self._alias)
        self.tree.page_cache = self.tree.svm.page_cache = cache
        self.tree.loop_status = self._loop_status
        attribute_cache = KernelAttributes(session)
        self.machine.names.root.cache = self.spaces.root.cache = attribute_cache
        self.served.extend = KernelSizes(session).extend
        self.vdev.ttm.unmapper = BoPageCache(cache)
        self.svm.unmapper = SpacePageCache(cache)
        names = NameCache(session, self.served.inodes)
        self.machine.names.gone = self.spaces.gone = names.gone
        self.machine.names.clients.gone = lambda client: names.left(CLIENTS_KEY, client.file_name)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.vdev.run)
            nursery.start_soon(self.svm.run)
            nursery.start_soon(self.machine.names.members.run)
            nursery.start_soon(names.run)
            nursery.start_soon(attribute_cache.run)
            nursery.start_soon(self.collector.run)
            nursery.start_soon(self.tree.watch_signals)
            if watchdog is not None:
                nursery.start_soon(watchdog.heartbeat)
            nursery.start_soon(self._stop_on_signal)
            nursery.start_soon(dump_on_signal)
            nursery.start_soon(self._notice_disconnect, session)
            nursery.start_soon(self._set_up, session, ready)
            await pyfuse3.main(MIN_TASKS, MAX_TASKS)
            # Not later: trio closes the descriptor that signals are written to before it says so.
            session_loop.stop_freeze_timer()
            self._release_waiters()
            self.svm.close()
            nursery.cancel_scope.cancel()

    def _alias(self, ino: int) -> str:
        return os.path.join(self.mountpoint, os.fsdecode(ALIAS_PREFIX) + str(ino))

    def _loop_status(self) -> str:
        device = self.device_loop.statistics if self.device_loop is not None else DeviceStatistics()
        counts = asdict(session_loop.statistics()) | asdict(device)
        lines = [f"{key}\t{value}" for key, value in counts.items()]
        return "\n".join(lines + [f"tuning\t{sentence}" for sentence in self.report]) + "\n"

    async def _set_up(self, session: SessionFd, ready: Callable[[], None]) -> None:
        """After INIT, which the first request brings about; from a thread, because it waits for this very loop."""
        await trio.to_thread.run_sync(os.stat, self.mountpoint)
        device = await trio.to_thread.run_sync(_device_number, self.mountpoint)
        limits = self._raise_limits(session)
        bdi = tuning.tune_bdi(device)
        read_ahead = tuning.ReadAhead(device)
        self.served.set_read_ahead = read_ahead.set_read_ahead
        read_ahead.set_read_ahead(self.config.prefault * 4)
        self.report = [*limits.failed, *bdi.failed]
        for sentence in self.report:
            log.warning("%s", sentence)
        self.collector.start()
        ready()

    def _raise_limits(self, session: SessionFd) -> tuning.TuningReport:
        """Let many requests wait at once (R8): through fusectl, or as INIT agreed."""
        limits = tuning.raise_background_limits(session.connection)
        if limits.failed:
            agreed = self.handshake is not None and self.handshake.done
            granted = min(tuning.user_background_limit(), BACKGROUND) if agreed else tuning.DEFAULT_BACKGROUND
            # If as many as are granted waited, nobody else would be served (H3).
            self.vdev.ttm.max_parked = min(self.vdev.ttm.max_parked, granted * 2 // 3)
            if agreed:
                limits.failed = [f"{granted} requests may wait at once: {reason}" for reason in limits.failed[:1]]
        return limits

    async def _stop_on_signal(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _signum in signals:
                await self._shut_down()
                return

    async def _shut_down(self) -> None:
        """Refuse new opens and commands, write back what clients have dirty, release whoever waits, end the loop."""
        self.served.closing = True
        self.runner.close()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + _SHUTDOWN_INVAL_SECONDS
            written_back = trio.Event()
            nursery.start_soon(self._write_back, written_back)
            with trio.move_on_after(_SHUTDOWN_PATIENCE_SECONDS):
                await written_back.wait()
            # A WRITE that waits keeps an INVAL waiting: from here on requests are answered at once or not at all.
            self._release_waiters()
        pyfuse3.terminate()

    async def _write_back(self, done: trio.Event) -> None:
        """Take back what clients have cached, dirty pages first, while their requests are served (R1)."""
        for file in list(self.machine.names.files.values()):
            await unmap_virtual(file.bo)
            await trio.lowlevel.checkpoint()
        for space in list(self.spaces.files.values()):
            await self.svm.unmapper.invalidate(space.space, 0, 0)
        done.set()

    def _release_waiters(self) -> None:
        self.runner.close()
        self.vdev.ttm.closing = True
        self.tree.close()
        for engine in self.vdev.engines:
            engine.paused = False  # or whoever waits for a copy, shielded, goes on waiting
        self.svm.wake()
        for file in self.machine.names.files.values():
            file.bo.gate.wake()

    async def _notice_disconnect(self, session: SessionFd) -> None:
        """After an unmount or abort nobody can be answered: parked requests must end, or the loop never does (H22)."""
        while session.connected:
            await trio.sleep(_CONNECTION_POLL_SECONDS)
        self._release_waiters()


def _device_number(mountpoint: str) -> int:
    return os.stat(mountpoint).st_dev
