"""ttm-trace: record, follow and report what a device does, through ctl/trace and trace_pipe."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any, Final

import click
from rich.console import Console
from rich.table import Table

from ttm_tools import mapsample
from ttm_tools.access import Stream
from ttm_tools.device import Device
from ttm_tools.errors import NO_MOUNT, MountError
from ttm_tools.mounts import VARIABLE, find_mount, ttmfs_mounts
from ttm_tools.options import (
    HELP,
    complete_bo,
    complete_event,
    completion_help,
    mount_option,
    version_option,
    with_errors,
)
from ttm_tools.perfetto import write_json
from ttm_tools.pftrace import package, write_pftrace
from ttm_tools.report import Section, report
from ttm_tools.traceformat import Parsed, clocks_line, parse, parse_line, sample_line
from ttm_tools.words import as_word, shown

SAMPLE_SECONDS: Final = 0.25
DRAIN_SECONDS: Final = 5.0
REPLAY_EVENTS: Final = ("bo_create", "bo_destroy", "move_end", "use")
"""What `ttmfs replay` reads of a trace."""


class Stop:
    """Set by ^C or TERM."""

    def __init__(self) -> None:
        self.set = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.set = True


def state_of(text: str) -> str:
    """What ctl/trace says that is recorded now, as the words that switch it on again: `off`, `all`, or events."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].strip() if lines else "off"


@contextlib.contextmanager
def switched_on(device: Device, events: tuple[str, ...], bos: tuple[str, ...]) -> Iterator[None]:
    """Have these events recorded; afterwards what was recorded before is again."""
    before = state_of(device.text("ctl/trace"))
    words = [*(events or ("all",)), *(f"bo={as_word(name)}" for name in bos)]
    try:
        device.write("ctl/trace", " ".join(words))
    except OSError as error:
        why = device.last_error().split("\t")[-1] if error.errno else ""
        raise MountError(f"ctl/trace refuses {' '.join(words)!r}: {why or error.strerror}", NO_MOUNT) from None
    try:
        yield
    finally:
        device.write("ctl/trace", before)


def sample(device: Device) -> dict[str, Any]:
    """The counters of one moment that a recording keeps: bytes used by region, faults, moves, bytes moved, fences."""
    stats = device.stats()
    return {
        "regions": {name: region["used"] for name, region in stats.get("regions", {}).items()},
        "faults": stats.get("faults", {}).get("count", 0),
        "moves": stats.get("moves", {}).get("count", 0),
        "moved": stats.get("moves", {}).get("bytes", 0),
        "pending": stats.get("fences", {}).get("pending", 0),
    }


class Recorder:
    """Copies events from a trace_pipe into a file, with samples between them if asked. Older events are left out."""

    def __init__(self, device: Device, out: IO[str], *, samples: bool) -> None:
        self.device = device
        self.out = out
        self.events = 0
        self._samples = samples
        self._rest = b""
        self._since = 0.0
        self._next_sample = 0.0

    def run(
        self,
        stream: Stream,
        stop: Stop,
        seconds: float | None = None,
        child: "subprocess.Popen[bytes] | None" = None,
    ) -> None:
        """Until ^C, the time is up or the child has ended. MountError when the pipe ends before that."""
        end = None if seconds is None else time.monotonic() + seconds
        while not stop.set and (child is None or child.poll() is None) and (end is None or time.monotonic() < end):
            if self._samples and time.monotonic() >= self._next_sample:
                self._sample()
            if not self._take(stream, 0.05):
                # Says what became of the mount, if it can be known.
                self.device.stats()
                raise MountError(f"{self.device.mount}/trace_pipe has ended")

    def begin(self) -> None:
        """Events from now on count."""
        if self._samples:
            self.out.write("# tracer: ttmfs\n" + clocks_line())
            self.out.writelines(mapsample.lines_of(self.device, time.monotonic()))
        self._since = time.monotonic()

    def drain(self, stream: Stream) -> None:
        """After tracing was switched off: what is still in the pipe."""
        if self._samples:
            self._sample()
        stream.finish()
        end = time.monotonic() + DRAIN_SECONDS
        while (left := end - time.monotonic()) > 0 and self._take(stream, left):
            pass
        if self._rest:
            self._line(self._rest)
        if self._samples:
            self.out.writelines(mapsample.lines_of(self.device, time.monotonic()))

    def _sample(self) -> None:
        now = time.monotonic()
        self.out.write(sample_line(now, sample(self.device)))
        self._next_sample = now + SAMPLE_SECONDS

    def _take(self, stream: Stream, seconds: float) -> bool:
        """What comes within a time; False at the end of the pipe."""
        ready, _, _ = select.select([stream], [], [], seconds)
        if not ready:
            return True
        data = stream.read()
        if not data:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if not self._samples:
            self.out.flush()
        return True

    def _line(self, data: bytes) -> None:
        line = data.decode("utf-8", "surrogateescape")
        event = parse_line(line)
        if event is not None and event.when < self._since:
            return
        self.events += event is not None
        self.out.write(line + "\n")


def _no_pipe(device: Device) -> MountError:
    return MountError(f"{device.mount} has no trace_pipe: this ttmfs is too old", NO_MOUNT)


def open_pipe(device: Device) -> Stream:
    """The mount's trace_pipe. MountError."""
    try:
        return device.stream("trace_pipe")
    except FileNotFoundError:
        raise _no_pipe(device) from None


# -- the command line --------------------------------------------------------------------------------------------------


@click.group(context_settings=HELP, epilog=completion_help("ttm-trace"))
@version_option
def main() -> None:
    """Record, follow and report the events of a ttmfs mount.

    \b
    ttm-trace record -- ./my-test               what the device does while it runs, into ttmfs.trace
    ttm-trace record fault evict --bo tex0      these events of one BO, until ^C
    ttm-trace follow evict place_tried          live: who is evicted, and what was tried
    ttm-trace report ttmfs.trace                how often, how long, why
    ttm-trace report ttmfs.trace --perfetto out.json    open it with https://ui.perfetto.dev

    `cat MNT/ctl/trace` lists the events.
    """


_bo_option = click.option(
    "--bo", "bos", multiple=True, metavar="NAME", shell_complete=complete_bo, help="Only this BO."
)


_perfetto_option = click.option(
    "--perfetto", metavar="OUT", help="Write this file for Perfetto too; one that ends in .json is Chrome's format."
)


class WithCommand(click.Command):
    """Keeps what stands after `--` apart; click would forget where it began."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        if "--" in args:
            place = args.index("--")
            ctx.meta["command"] = tuple(args[place + 1 :])
            args = args[:place]
        return super().parse_args(ctx, args)


@main.command(cls=WithCommand, epilog=completion_help("ttm-trace"))
@click.argument("events", metavar="[EVENT...] [-- CMD...]", nargs=-1, shell_complete=complete_event)
@mount_option
@_bo_option
@click.option("-o", "--output", default="ttmfs.trace", show_default=True, metavar="FILE", help="Where to; - is stdout.")
@click.option("--seconds", type=click.FloatRange(0), help="So long. [default: until ^C, or CMD ends]")
@_perfetto_option
@click.option("--replay", is_flag=True, help="Record what `ttmfs replay` reads: uses, moves, ends of BOs.")
@click.pass_context
@with_errors
def record(
    ctx: click.Context,
    events: tuple[str, ...],
    mount: str | None,
    bos: tuple[str, ...],
    output: str,
    seconds: float | None,
    perfetto: str | None,
    replay: bool,
) -> None:
    """Record events into a file, until ^C or as long as CMD runs.

    Without EVENT all are recorded. What ctl/trace was set to before is set again at the end. CMD runs with TTMFS_MOUNT
    set, and its exit status is the exit status. Besides the events FILE has the regions' usage every 0.25 s, and their
    maps before and after, as comments. Readers of one trace_pipe share its events: do not record twice at a time.

    \b
    ttm-trace record -o run.trace -- fio job.fio
    ttm-trace record --seconds 10 --perfetto run.pftrace
    ttm-trace record fault gate_wait --bo 'textures/wall 1'
    ttm-trace record --replay -o day.trace -- ./train && ttmfs replay day.trace --size 256M
    """
    command: tuple[str, ...] = ctx.meta.get("command", ())
    if perfetto is not None and output == "-":
        raise click.UsageError("--perfetto needs a file: say -o FILE")
    if perfetto is not None and not _is_json(perfetto):
        package()
    if replay:
        events = tuple(dict.fromkeys((*events, *REPLAY_EVENTS)))
    stop = Stop()
    with Device(find_mount(mount)) as device, contextlib.ExitStack() as cleanup:
        if output == "-":
            out: IO[str] = sys.stdout
        else:
            out = cleanup.enter_context(open(output, "w", encoding="utf-8", errors="surrogateescape"))
        recorder = Recorder(device, out, samples=True)
        recorder.begin()
        with switched_on(device, events, bos):
            # A pipe that is opened while nothing is recorded is at its end.
            stream = open_pipe(device)
            cleanup.callback(stream.close)
            child = _start(command, device.mount)
            status = 0
            try:
                recorder.run(stream, stop, seconds, child)
            finally:
                status = _end(child)
        recorder.drain(stream)
        out.flush()
    click.echo(f"ttm-trace: {recorder.events} events in {output}", err=True)
    if perfetto is not None:
        _write_perfetto(_parsed(output), perfetto)
    sys.exit(status)


def _start(command: tuple[str, ...], mount: str) -> "subprocess.Popen[bytes] | None":
    if not command:
        return None
    try:
        return subprocess.Popen(command, env={**os.environ, VARIABLE: mount})
    except OSError as error:
        raise MountError(
            f"{command[0]}: {error.strerror}", 127 if isinstance(error, FileNotFoundError) else 126
        ) from None


def _end(child: "subprocess.Popen[bytes] | None") -> int:
    """End the command if it still runs; its status as a shell gives it."""
    if child is None:
        return 0
    if child.poll() is None:
        child.terminate()
    try:
        code = child.wait(5)
    except subprocess.TimeoutExpired:
        child.kill()
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


@main.command(epilog=completion_help("ttm-trace"))
@click.argument("events", metavar="[EVENT...]", nargs=-1, shell_complete=complete_event)
@mount_option
@_bo_option
@with_errors
def follow(events: tuple[str, ...], mount: str | None, bos: tuple[str, ...]) -> None:
    """Print events as they happen, until ^C.

    What ctl/trace was set to before is set again at the end.

    \b
    ttm-trace follow
    ttm-trace follow evict validate | grep tex0
    """
    stop = Stop()
    with Device(find_mount(mount)) as device, contextlib.ExitStack() as cleanup:
        recorder = Recorder(device, sys.stdout, samples=False)
        recorder.begin()
        with switched_on(device, events, bos):
            stream = open_pipe(device)
            cleanup.callback(stream.close)
            recorder.run(stream, stop)
        recorder.drain(stream)


@main.command("report", epilog=completion_help("ttm-trace"))
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@_perfetto_option
@click.option("--top", type=click.IntRange(1), default=15, show_default=True, help="Rows of the longest tables.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: table, rows.")
@with_errors
def report_(file: str, perfetto: str | None, top: int, as_json: bool) -> None:
    """Say what a recording shows: events, latencies, BOs, moves, engines, reasons.

    FILE is one that `record` wrote, or a copy of MNT/trace or MNT/trace.json; - is standard input. Who was evicted for
    whom, and what was tried before that, is in the table of evictions: record evict and place_tried for it.

    \b
    ttm-trace report run.trace
    ttm-trace report /tmp/gpu/trace
    ttm-trace report run.trace --perfetto run.pftrace
    """
    parsed = _parsed(file)
    if not parsed.events and parsed.odd_lines:
        raise click.ClickException(f"{file} is no trace: none of its {parsed.odd_lines} lines is an event")
    if perfetto is not None:
        _write_perfetto(parsed, perfetto)
    sections = report(parsed, top)
    if as_json:
        tables = {s.title: [dict(zip(s.columns, row, strict=True)) for row in s.rows] for s in sections}
        click.echo(json.dumps(tables))
    elif sys.stdout.isatty():
        _print_sections(sections)
    else:
        for section in sections:
            rows = ["\t".join(_text(value) for value in row) for row in section.rows]
            click.echo("\n".join([f"# {section.title}", "\t".join(section.columns), *rows]))


def _parsed(file: str) -> Parsed:
    path = os.path.abspath(file)
    mount = next((mount for mount in ttmfs_mounts() if path.startswith(mount + "/")), None)
    if mount is not None and file != "-":
        with Device(mount) as device:
            return parse(device.text(os.path.relpath(path, mount)).splitlines())
    with click.open_file(file, encoding="utf-8", errors="surrogateescape") as lines:
        return parse(lines)


def _write_perfetto(parsed: Parsed, path: str) -> None:
    count = write_json(parsed, path) if _is_json(path) else write_pftrace(parsed, path)
    click.echo(f"ttm-trace: {count} rows in {path}: open it with https://ui.perfetto.dev", err=True)


def _is_json(path: str) -> bool:
    return path.endswith(".json")


def _text(value: object) -> str:
    return shown(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _print_sections(sections: list[Section]) -> None:
    console = Console(highlight=False, markup=False)
    for section in sections:
        table = Table(box=None, header_style="bold", pad_edge=False, title=section.title, title_justify="left")
        for number, column in enumerate(section.columns):
            values = [row[number] for row in section.rows]
            table.add_column(column, justify="left" if any(isinstance(v, str) for v in values) else "right")
        for row in section.rows:
            table.add_row(*map(_text, row))
        console.print(table)
        console.print()


if __name__ == "__main__":
    main()
