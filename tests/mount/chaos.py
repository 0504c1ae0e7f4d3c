"""Everything at once on one mount: clients that check every byte, address spaces, jobs, storms, traces, failures.

    chaos.py [--seed N] [--seconds S] [--case NAME] [--failures [HOW]]

Beside each other run the exerciser of BO files with its own storm of commands, the exerciser of address spaces,
ttm-storm on all commands, device jobs and a VM with models of their own, the shrinker and the defrag pass, a reader of
trace_pipe and one of every statistics file; with --failures places of `debug/fail_*` fail (chaos_failures.py). Promise:
the run fails when a byte was wrong, a call or a client hung, the daemon died or said something suspicious, or anything
is left when all is unlinked; it says then who waited for what. All choices follow from the seed; what the kernel
schedules does not.
"""

import argparse
import contextlib
import errno
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mount.chaos_failures import NOW_AND_THEN, Failures
from tests.mount.chaos_jobs import JOB_BYTES, JobActor
from tests.mount.chaos_run import MAY_FAIL
from tests.mount.chaos_vms import VmActor
from tests.mount.mount_harness import MIB, PATIENCE, REPOSITORY, Client, Device
from tests.mount.svm_exerciser import Exerciser
from tests.mount.waiting import what_everybody_waits_for
from ttmfs.observe.inject import PLACES

SMALL = ("--vram", "16M", "--gtt", "32M", "--memory", "96M", "--swap", "256M", "--placement", "vram gtt system")
CASES: dict[str, tuple[str, ...]] = {
    "shmem": (*SMALL, "--pages-limit", "48M", "--visible-vram", "4M"),
    "zstd": (*SMALL, "--pages-limit", "40M", "--swap-store", "zstd", "--copy-engines", "2", "--copy-latency", "0.001"),
    "file": (*SMALL, "--pages-limit", "40M", "--swap-store", "file:{folder}/swap", "--copy-engines", "2"),
    "tight": (*SMALL[:4], "--memory", "56M", *SMALL[6:], "--copy-bandwidth", "200M", "--beneficial-order", "4"),
}
"""Mount options; `{folder}` is a directory of the run."""

STORM_MAY_FAIL = frozenset({errno.EBUSY, errno.ENOMEM, errno.ENOSPC, errno.ETIME, errno.EINTR, errno.EIO})
STUCK = 5.0
"""Seconds that a READ or WRITE may wait on an idle machine; from then on it is told who waits for what."""
LAST = 90.0
"""Seconds that everybody together may take to end once it is over."""


class Chaos:
    """One run on one device; `failures` are the findings."""

    def __init__(self, device: Device, folder: Path, seed: int, seconds: float, failures: str = "") -> None:
        self.device = device
        self.folder = folder
        self.seed = seed
        self.seconds = seconds
        self.failures = failures
        self.inject = bool(failures)
        self.mount = device.mountpoint
        self.over = threading.Event()
        self.findings: list[str] = []
        self.counts: dict[str, int] = {}
        self.waits = ""
        """Who waited for what when something first was found, or took too long."""
        self._processes: list[subprocess.Popen[str]] = []
        self._looking = threading.Lock()

    def find(self, who: str, what: object) -> None:
        """Take note of a failure; everybody stops."""
        self.findings.append(f"{who}: {what}")
        self.look(f"{who}: {str(what)[:200]}")
        self.over.set()

    def look(self, why: str) -> None:
        """Who waits for what now; the first time counts."""
        with self._looking:
            if not self.waits:
                self.waits = "as it is told below"
                clients = [*(client.pid for client in self.device.clients), *(each.pid for each in self._processes)]
                self.waits = f"{why}\n{what_everybody_waits_for(self.device, clients)}"

    def count(self, what: str, more: int = 1) -> None:
        """For the report."""
        self.counts[what] = self.counts.get(what, 0) + more

    # -- the processes -------------------------------------------------------------------------------------------------

    def start(self, *command: str) -> "subprocess.Popen[str]":
        """A process whose output is kept."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/")
        self._processes.append(process)
        return process

    def watch(self, who: str, process: "subprocess.Popen[str]", *right: int) -> Callable[[], None]:
        """A thread's body: reads what it says until it ends; another status than `right` is a finding."""

        def body() -> None:
            out, _ = process.communicate()
            if process.returncode not in (right or (0,)):
                self.find(who, f"status {process.returncode}\n{out[-6000:]}")
            else:
                with contextlib.suppress(ValueError, IndexError, KeyError):
                    self.count(f"{who} operations", json.loads(out.splitlines()[-1])["ops"])

        return body

    def bo_exerciser(self) -> list[str]:
        """Four clients that are killed at random and a storm; while places fail none that a SIGBUS would end."""
        command = [sys.executable, str(REPOSITORY / "tests" / "exerciser.py")]
        command += [f"{self.mount}/bo/e{n}" for n in range(4)]
        command += ["--seconds", str(self.seconds), "--seed", str(self.seed), "--max-size", "6M"]
        command += ["--max-op-seconds", "20", "--hang-seconds", "30", "--unlink"]
        if not self.inject:
            return [*command, "--kill", "--ctl", self.mount]
        only = "pread,pwrite,append,fsync,truncate,o_trunc,fadvise,direct_read,direct_write,reopen"
        return [*command, "--allow-errno", MAY_FAIL, "--only", only]

    def ttm_storm(self, *names: str) -> list[str]:
        """All commands; pins only where nobody else minds that the BO does not move."""
        program = Path(sys.executable).parent / "ttm-storm"
        command = [str(program), self.mount, *names, "--seconds", str(self.seconds), "--seed", str(self.seed)]
        if not names[0].startswith("s"):
            command += ["--commands", "validate,evict,defrag,backup,restore,unmap,swapout"]
        allowed = "ENOENT,EINTR,EINVAL" + (",EIO" if self.inject else "")
        return [*command, "--keep-going", "--rate", "100", "--allow", allowed, "--json"]

    # -- the threads ---------------------------------------------------------------------------------------------------

    def thread(self, who: str, body: Callable[[], None]) -> threading.Thread:
        """Run it; what it raises is a finding."""

        def guarded() -> None:
            try:
                body()
            except BaseException as error:
                self.find(who, f"{type(error).__name__}: {error} {getattr(error, '__notes__', '')}")

        thread = threading.Thread(target=guarded, name=who, daemon=True)
        thread.start()
        return thread

    def address_spaces(self) -> None:
        """Rounds of the exerciser of address spaces, which compares everything between them."""
        exerciser = Exerciser(self.device, self.seed)
        end = time.monotonic() + self.seconds
        while not self.over.is_set() and time.monotonic() < end:
            exerciser.run(seconds=min(5.0, end - time.monotonic()))
        self.count("svm rounds", exerciser.round)

    def going_on(self) -> bool:
        """Is it not over yet?"""
        return not self.over.is_set()

    def jobs(self) -> None:
        """Jobs on BOs of their own."""
        JobActor(self, self.seed).act()

    def vms(self) -> None:
        """Jobs of a VM."""
        VmActor(self, self.seed).act()

    def client(self, code: str = "import zlib") -> Client:
        """A client that is not the shell's."""
        return self.device.client(code)

    def commands(self) -> None:
        """Commands of the device as a whole."""
        rng = random.Random(f"commands {self.seed}")
        client = self.client()
        lines = [
            ("ctl/shrink", "1M"), ("ctl/shrink", "all no_wait_gpu"), ("ctl/backup", "2M"), ("ctl/defrag", "all"),
            ("ctl/defrag", "limit=2"), ("ctl/evict", "vram"), ("ctl/evict", "gtt 4M"), ("ctl/evict", "vram 1M"),
            ("ctl/config", "prefault=16"), ("ctl/config", "prefault=256"),
            ("ctl/config", "defrag_interval=0.05"), ("ctl/config", "copy_latency=0.002"),
            ("ctl/config", "copy_latency=0"), ("ctl/config", "pool_limit=1M"), ("ctl/config", "pool_limit=64M"),
            ("ctl/validate", "s0,s1,s2 vram gtt"), ("ctl/validate", "s3,s0 vram"), ("ctl/trace", "fault move_end"),
            ("ctl/trace", "all"), ("ctl/trace", "off"),
        ]  # fmt: skip
        while not self.over.is_set():
            name, text = rng.choice(lines)
            code = client.do(f"command({name!r}, {text!r})", 90)
            self.count("commands")
            if code and code not in STORM_MAY_FAIL and not (code == errno.EINVAL and "s" in text):
                why = client.do("slurp('error_log')").splitlines()[-1:]
                raise AssertionError(f"{name} {text}: {errno.errorcode[code]} {why}")
            if rng.random() < 0.1:
                said = client.do("slurp('ctl/selfcheck')", 30)
                self.count("selfchecks")
                assert said == "ok\n", said
            self.over.wait(rng.random() * 0.1)

    def statistics(self) -> None:
        """Read every file that shows something; nothing waits for long."""
        client = self.client()
        code = (
            "def all_of(top):\n"
            "    for name in os.listdir(path(top)):\n"
            "        name = top + '/' + name\n"
            "        try:\n"
            "            if os.path.isdir(path(name)): all_of(name)\n"
            "            elif os.stat(path(name)).st_mode & 0o400: open(path(name), 'rb').read()\n"
            "        except OSError as error:\n"
            "            if error.errno in (errno.ENOENT, errno.ENODATA): continue\n"
            "            # What is peeked at is read from the store, too, which was told to fail.\n"
            f"            if error.errno != errno.EIO or not name.endswith('/peek') or not {self.inject}:\n"
            "                raise AssertionError(f'{name}: {errno.errorcode[error.errno]}')\n"
        )
        client.do(code)
        while not self.over.is_set():
            for name in ("regions", "pool", "swap", "fences", "debug", "objects", "svm_objects", "vm", "ctl"):
                client.do(f"all_of({name!r})", 60)
            for name in ("stats", "metrics", "trace", "error_log"):
                client.do(f"len(open(path({name!r}), 'rb').read())", 30)
            stats = json.loads(client.do("slurp('stats')", 30))
            assert stats["requests"]["handler_errors"] == 0, stats["requests"]
            assert stats["requests"]["oldest_ms"] < 30_000, stats["requests"]
            self.count("statistics rounds")
            self.over.wait(0.2)

    def fail(self) -> None:
        """Places fail as it was asked for."""
        Failures(self.failures, self.seed).act(self)

    def sleep(self, seconds: float) -> None:
        """Until then, or until it is over."""
        self.over.wait(seconds)

    def requests(self) -> None:
        """How long READs and WRITEs wait, as the daemon says it beside the mount."""
        while not self.over.wait(0.5):
            oldest = self.device.stats()["requests"]["oldest_ms"] / 1000
            self.counts["longest wait ms"] = max(self.counts.get("longest wait ms", 0), round(oldest * 1000))
            if oldest > STUCK:
                self.look(f"a request waits for {oldest:.1f} s")
            assert oldest < STUCK * PATIENCE, f"a request waits for {oldest:.1f} s"

    # -- all of it -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until the time is up or something was found."""
        shell = self.device.shell
        for number in range(6):
            self.device.make(f"s{number}", (1 << number) * 128 << 10, number + 1)
        shell.do("[os.close(opened('bo/e%d' % n, os.O_CREAT | os.O_RDWR)) for n in range(4)] and None")
        for number in range(3):
            self.device.make(f"j{number}", JOB_BYTES, 0)
        assert self.device.command("ctl/trace", "all") in ("ok", "EINVAL")
        pipe = self.start(sys.executable, "-c", READER, f"{self.mount}/trace_pipe")
        exerciser, storm = self.start(*self.bo_exerciser()), self.start(*self.ttm_storm(*(f"s{n}" for n in range(6))))
        other = self.start(*self.ttm_storm("e0", "e1", "j0", "j1", "j2"))
        bodies: list[tuple[str, Callable[[], None]]] = [
            ("exerciser", self.watch("exerciser", exerciser)),
            ("ttm-storm", self.watch("ttm-storm", storm)),
            ("ttm-storm of files", self.watch("ttm-storm of files", other)),
            ("jobs", self.jobs),
            ("vms", self.vms),
            ("commands", self.commands),
            ("statistics", self.statistics),
            ("requests", self.requests),
            ("failures", self.fail) if self.inject else ("spaces", self.address_spaces),
        ]
        threads = [self.thread(who, body) for who, body in bodies]
        self.over.wait(self.seconds)
        end = time.monotonic() + LAST
        for thread in threads[:3]:
            thread.join(0 if self.findings else end - time.monotonic())
        self.over.set()
        for who, thread in zip(bodies, threads, strict=True):
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.find(who[0], "does not come to its end")
        if not self.device.alive:
            self.find("daemon", f"died with status {self.device.daemon.popen.returncode}")
        for process in (pipe, exerciser, storm, other):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()

    def end(self) -> None:
        """Unlink all; nothing is left."""
        device = self.device
        for place in PLACES:
            device.command(f"debug/fail_{place}/probability", "0")
        intact = device.shell.do(
            "[open(path('bo/s%d' % n), 'rb').read().strip(bytes([n + 1])) == b'' for n in range(6)]", 60
        )
        if intact != [True] * 6:
            self.find("bystanders", intact)
        device.remove_all()
        device.shell.do("os.path.exists(path('vm/chaos')) and os.rmdir(path('vm/chaos'))")
        try:
            device.until(lambda: not left(device.stats()), 20, "nothing is left")
        except AssertionError as error:
            self.find("left", f"{error}: {left(device.stats())} {device.control('gates')}")
        wrong = device.control("selfcheck") + device.suspicious()
        if wrong:
            self.find("selfcheck", wrong)
        device.control("trim_pool")
        self.counts["rss MiB"] = device.rss() // MIB
        status = device.stop(30)
        if status:
            self.find("daemon", f"ended with status {status}\n{device.log()[-3000:]}")


READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
while os.read(fd, 65536): pass
"""


def left(stats: dict[str, Any]) -> dict[str, int]:
    """What is still in use, by name."""
    used = {name: region["usage"] for name, region in stats["regions"].items()}
    used |= {"in_use_pages": stats["pool"]["in_use_pages"], "swap": stats["swap"].get("pages", 0)}
    used |= {"pending": stats["fences"]["pending"], "waiting": stats["requests"]["waiting"]}
    used |= {"bos": stats["bos"]["count"], "ghosts": stats["bos"]["ghosts"], "zombies": stats["bos"]["zombies"]}
    return {name: value for name, value in used.items() if value}


@contextlib.contextmanager
def run(case: str, seed: int, seconds: float, failures: str = "") -> Iterator[Chaos]:
    """A run; what it found is in `findings` of the result. `failures` is what Failures takes; "": nothing fails."""
    with tempfile.TemporaryDirectory(prefix="ttmfs-chaos-") as folder:
        options = [option.format(folder=folder) for option in CASES[case]]
        if failures and "--visible-vram" in options:
            # What an engine fails to copy is lost where the CPU cannot reach it.
            at = options.index("--visible-vram")
            del options[at : at + 2]
        device = Device(*options, "--fault-timeout", "10", "--command-timeout", "20")
        chaos = Chaos(device, Path(folder), seed, seconds, failures)
        try:
            chaos.run()
            if not chaos.findings:
                chaos.end()
            else:
                chaos.findings.append("log: " + "\n".join(device.log().splitlines()[-30:]))
                chaos.findings.append("waits: " + chaos.waits)
            yield chaos
        finally:
            device.end()
            for process in chaos._processes:
                process.kill()


def again(case: str, seed: int, failures: str) -> str:
    """The options that do it once more."""
    return f"--seed {seed} --case {case}" + f" --failures {failures}" * bool(failures)


def main() -> int:
    """Run on a device of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--case", choices=CASES, default="shmem")
    parser.add_argument(
        "--failures",
        nargs="?",
        const=NOW_AND_THEN,
        default="",
        metavar="HOW",
        help="places of debug/fail_* fail: now-and-then, all:PERCENT, or pairs:PERCENT[:FIRST-LAST]",
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(again(options.case, seed, options.failures), flush=True)
    with run(options.case, seed, options.seconds, options.failures) as chaos:
        print(chaos.counts)
        for finding in chaos.findings or ([f"waits: {chaos.waits}"] if chaos.waits else []):
            print(finding, file=sys.stderr)
        return 1 if chaos.findings else 0


if __name__ == "__main__":
    sys.exit(main())
