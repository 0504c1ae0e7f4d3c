"""ttm-storm: commands on BOs at random, for stress. What fails by the device's rules is counted; the rest is a finding.

No command that the storm writes may change a byte of a BO, so clients that verify their bytes can run beside it. The
same seed writes the same commands to the same BOs in the same order.
"""

import errno
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

import click

from ttm_tools.device import COMMAND_SECONDS, Device
from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.mounts import find_mount, looks_like_a_path
from ttm_tools.options import HELP, complete_mount_or_bo, completion_help, mount_option, version_option, with_errors
from ttm_tools.words import shown

PLACES: Final = (
    "vram",
    "vram",
    "gtt",
    "system",
    "vram gtt",
    "vram:topdown",
    "vram:contiguous gtt",
    "gtt:temporary",
    "vram no_wait_gpu",
    "gtt no_wait_gpu",
)
ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    "validate": PLACES,
    "evict": ("", "", "no_wait_gpu"),
    "defrag": ("", "no_wait_gpu"),
    "backup": ("", "writeback"),
    "restore": ("",),
    "unmap": ("",),
    "swapout": ("",),
    "pin": ("",),
    "wait": ("kernel 5",),
}
"""Command of objects/NAME/ → what may be written into it. Words of the command that is not there are left out."""

DEFAULT: Final = ("validate", "evict", "defrag", "backup", "restore", "unmap", "swapout", "pin")
EXPECTED: Final = frozenset({errno.EBUSY, errno.ENOMEM, errno.ENOSPC, errno.ETIME})
"""A busy object, a full region, a full store, a timeout: part of a storm."""

PINNED: Final = frozenset({errno.EINVAL, errno.EPERM})
"""What a pinned BO answers to commands that must move it."""

MOST_PINS: Final = 4
"""So many BOs at most are pinned at one time, and a quarter of all: a storm that pins everything moves nothing."""


@dataclass(slots=True)
class Totals:
    """What a storm did: writes, counts by outcome (`ok` or errno) and by command, what was unexpected (with why)."""

    seed: int
    writes: int = 0
    results: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    unexpected: dict[str, str] = field(default_factory=dict)
    slowest_ms: float = 0.0
    slowest: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For --json. `unexpected` counts kinds, `findings` says them."""
        return {
            "seed": self.seed,
            "writes": self.writes,
            "seconds": round(self.seconds, 3),
            "results": dict(self.results),
            "words": dict(self.words),
            "slowest_ms": round(self.slowest_ms, 1),
            "slowest": self.slowest,
            "unexpected": len(self.unexpected),
            "findings": self.unexpected,
        }

    def as_lines(self) -> list[str]:
        """Tab-separated: what, which, count."""
        rows: list[tuple[object, ...]] = [("seed", "", self.seed), ("writes", "", self.writes)]
        rows += [("result", key, count) for key, count in sorted(self.results.items())]
        rows += [("command", key, count) for key, count in sorted(self.words.items())]
        rows.append(("slowest_ms", self.slowest, f"{self.slowest_ms:.1f}"))
        rows += [("unexpected", key, why) for key, why in self.unexpected.items()]
        return ["\t".join(map(str, row)) for row in rows]


class Storm:
    """Writes commands until `stop` is set or the time is up; pins are always taken back."""

    def __init__(self, device: Device, names: list[str], words: list[str], seed: int, allowed: frozenset[int]) -> None:
        self.device = device
        self.names = names
        self.words = words
        self.allowed = allowed
        self.totals = Totals(seed)
        self.stopped = False
        self._rng = random.Random(seed)
        self._pinned: list[str] = []
        self._budget = max(1, min(MOST_PINS, len(names) // 4))

    def run(self, seconds: float, rate: float, most: int, *, keep_going: bool) -> Totals:
        """`rate` is commands a second, 0 for as fast as it goes; at most `most` commands.

        MountError when the mount does not answer.
        """
        started = time.monotonic()
        try:
            while not self.stopped and self.totals.writes < most and (now := time.monotonic()) - started < seconds:
                if rate and (ahead := started + self.totals.writes / rate - now) > 0:
                    time.sleep(min(ahead, 0.1))
                    continue
                self._one()
                if self.totals.unexpected and not keep_going:
                    break
        finally:
            self.totals.seconds = time.monotonic() - started
            self._unpin_all()
        return self.totals

    def _one(self) -> None:
        name = self._rng.choice(self.names)
        word = self._rng.choice(self.words)
        argument = self._rng.choice(ARGUMENTS[word])
        if word == "pin" and len(self._pinned) >= self._budget:
            name, word = self._pinned.pop(0), "unpin"
        outcome = self._write(name, word, argument)
        if word == "pin" and not outcome:
            self._pinned.append(name)

    def _write(self, name: str, word: str, argument: str) -> int:
        """One command; its errno or 0, counted."""
        started = time.monotonic()
        outcome = 0
        try:
            self.device.write(f"objects/{name}/{word}", argument)
        except OSError as error:
            outcome = error.errno or errno.EIO
        took = (time.monotonic() - started) * 1e3
        totals = self.totals
        totals.writes += 1
        totals.words[word] += 1
        code = errno.errorcode.get(outcome, str(outcome)) if outcome else "ok"
        totals.results[code] += 1
        if took > totals.slowest_ms:
            totals.slowest_ms, totals.slowest = took, f"{shown(name)} {word} {argument}".rstrip()
        if outcome and not self._is_expected(name, outcome):
            what = f"{word} {argument}".rstrip() + f": {code}"
            if what not in totals.unexpected:
                totals.unexpected[what] = f"{shown(name)}: {self._why(outcome)}"
        return outcome

    def _is_expected(self, name: str, outcome: int) -> bool:
        if outcome in EXPECTED or outcome in self.allowed:
            return True
        # While a stop is on its way the device ends a waiting command with EINTR.
        return (outcome in PINNED and self._is_pinned(name)) or (outcome == errno.EINTR and self.stopped)

    def _is_pinned(self, name: str) -> bool:
        """By this storm, or by somebody else."""
        return name in self._pinned or bool(self.device.statuses([name]).get(name, {}).get("pin_count"))

    def _why(self, outcome: int) -> str:
        try:
            return self.device.last_error().replace("\t", " ") or os.strerror(outcome)
        except (OSError, MountError):
            return os.strerror(outcome)

    def _unpin_all(self) -> None:
        while self._pinned:
            name = self._pinned.pop()
            try:
                self.device.write(f"objects/{name}/unpin", "")
            except OSError as error:
                # Unlinked meanwhile: its pins went with it.
                if error.errno != errno.ENOENT:
                    self.totals.unexpected.setdefault("unpin at the end", f"{shown(name)}: {error.strerror}")


def _default(device: Device) -> list[str]:
    """A BO that is pinned where the CPU cannot see it fails its clients' faults: no pins where that can be."""
    regions = device.stats().get("regions", {}).values()
    hidden = any(region.get("visible_size", 0) < region["size"] for region in regions)
    return [word for word in DEFAULT if not (hidden and word == "pin")]


def _words(device: Device, names: list[str], wanted: str | None) -> list[str]:
    """The commands to write: those asked for, or of the default those that the device has. UsageError."""
    asked = wanted.replace(",", " ").split() if wanted else _default(device)
    for word in asked:
        if word not in ARGUMENTS:
            raise click.UsageError(f"--commands: {word!r} is none of {' '.join(ARGUMENTS)}")
    try:
        offered = device.entries(f"objects/{names[0]}")
    except OSError as error:
        raise MountError(f"{device.mount} has no BO {names[0]} ({error.strerror})", NO_MOUNT) from None
    there = [word for word in asked if word in offered]
    missing = [word for word in asked if word not in there]
    if wanted and missing:
        raise MountError(f"this device has no command {' '.join(missing)}", NO_MOUNT)
    if not there:
        raise MountError("this device has none of the commands", NO_MOUNT)
    return there


def _allowed(text: str) -> frozenset[int]:
    codes = set()
    for word in text.replace(",", " ").split():
        number = getattr(errno, word.upper(), None)
        if not isinstance(number, int):
            raise click.UsageError(f"--allow: {word!r} is no errno, as in ENOENT")
        codes.add(number)
    return frozenset(codes)


@click.command(context_settings=HELP, epilog=completion_help("ttm-storm"))
@click.argument("words", metavar="[MNT] [NAME...]", nargs=-1, shell_complete=complete_mount_or_bo)
@mount_option
@click.option("--seconds", type=click.FloatRange(0), default=10.0, show_default=True, help="How long.")
@click.option("--writes", type=click.IntRange(1), help="So many commands at most. [default: no limit]")
@click.option("--seed", type=int, help="Choose the same commands again. [default: a new one, which is printed]")
@click.option("--rate", type=click.FloatRange(0), default=0.0, help="Commands a second at most. [default: no limit]")
@click.option("--commands", metavar="WORDS", help=f"Only these, with commas between: {','.join(ARGUMENTS)}.")
@click.option("--allow", default="", metavar="ERRNOS", help="Errnos that are no finding either, as in ENOENT,EIO.")
@click.option("--keep-going", is_flag=True, help="Do not end at the first unexpected errno.")
@click.option("--json", "as_json", is_flag=True, help="The summary as one JSON object.")
@version_option
@with_errors
def main(
    words: tuple[str, ...],
    mount: str | None,
    seconds: float,
    writes: int | None,
    seed: int | None,
    rate: float,
    commands: str | None,
    allow: str,
    keep_going: bool,
    as_json: bool,
) -> None:
    """Write random commands to the BOs of a mount: validate, evict, defrag, backup, restore, unmap, swapout, pin.

    None of them may change a byte: run clients beside it that check theirs. EBUSY, ENOMEM, ENOSPC and ETIME are part
    of a storm and are counted; any other errno is a finding: it ends the storm with status 1, with the device's
    reason. ^C and TERM end it early, with the summary. Pins are taken back at the end; where vram is larger than what
    the CPU can see of it there are none, because the faults of a BO that is pinned out of sight fail.

    \b
    ttm-storm /tmp/gpu --seconds 60                      all BOs there are now
    ttm-storm /tmp/gpu tex0 tex1 --seed 7                these, the same commands again
    ttm-storm --commands validate,evict --rate 100
    ttm-storm --json | jq .results
    """
    rest = list(words)
    if mount is None and rest and looks_like_a_path(rest[0]):
        mount = rest.pop(0)
    allowed = _allowed(allow)
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    with Device(find_mount(mount), command_seconds=COMMAND_SECONDS) as device:
        names = rest or device.names()
        if not names:
            raise MountError(f"there is no BO in {device.mount}/bo: `truncate -s 16M {device.mount}/bo/a` makes one", 2)
        storm = Storm(device, names, _words(device, names, commands), seed, allowed)

        def stop(_number: int, _frame: FrameType | None) -> None:
            storm.stopped = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        click.echo(f"ttm-storm: seed {seed}, {len(names)} BOs: {' '.join(storm.words)}", err=True)
        totals = storm.run(seconds, rate, writes or sys.maxsize, keep_going=keep_going)
    for what, why in totals.unexpected.items():
        click.echo(f"ttm-storm: unexpected: {what} ({why})", err=True)
    click.echo(json.dumps(totals.as_json()) if as_json else "\n".join(totals.as_lines()))
    sys.exit(1 if totals.unexpected else 0)


if __name__ == "__main__":
    main()
