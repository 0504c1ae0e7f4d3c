"""What tracing costs: 4 KiB random faults of one contiguous BO with the trace off and on, on the same mount.

Off is the handler that a build without any trace would have (another one answers READs while faults are recorded), so
what is left of the cost of "off" are the checks of slower paths: a fault that is not answered from a view looks at
`trace.on` a few times. How long one look takes is measured as well and set against a fault. Rounds alternate; a spinner
keeps every processor awake. The goal is for the median fault: the mean is mostly what else the machine does. On a busy
machine that is too; what the two handlers themselves take, without a kernel, is measured besides.
"""

from __future__ import annotations

import argparse
import re
import timeit
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from lib.device import ScriptError
from ttmfs.driver.config import Config
from ttmfs.fs.mount import Mount
from ttmfs.fs.requests.served import BoHandle
from ttmfs.ttm import access

from .common import Goal, Report, awake_processors, built, console, parse_size
from .io import bo_subject, roomy_device

LOOKS: int = 6
"""Looks at `trace.on` on the way of a fault that takes no short cut."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this subcommand."""
    parser.add_argument("--rounds", type=int, default=7, help="alternations (default 7)")
    parser.add_argument("--size", type=parse_size, default=128 << 20, help="of the BO (default 128M)")
    parser.add_argument("--place", choices=("vram", "system"), default="vram", help="where the BO is (default vram)")
    parser.add_argument("--tests", type=lambda t: t.split(","), default=["fault1"], help="fault1 (default), fault4")


@dataclass
class _Looked:
    on: bool = False


def look_ns() -> float:
    """Nanoseconds that `if trace.on:` takes when it is off, the best of some runs."""
    holder = _Looked()
    number = 200_000
    bare = min(timeit.repeat("pass", number=number, repeat=7))
    looked = min(timeit.repeat("if trace.on: pass", globals={"trace": holder}, number=number, repeat=7))
    return max(looked - bare, 0.0) / number * 1e9


async def _handler_us() -> dict[str, float]:
    """Microseconds of a READ of 4 KiB in the handler alone, trace off and on, the best of some runs."""
    mount = Mount("/", Config(vram=8 << 20, gtt=8 << 20, memory=16 << 20))
    names, trace = mount.machine.names, mount.vdev.ttm.trace
    file = names.create(names.root, b"bench", 0o600, 0, 0)
    await access.write(file.bo, 0, bytes(1 << 20))
    await access.read(file.bo, 0, 4096)
    fh = mount.served.new_handle(BoHandle(file, pid=0, writes=False, own=False))

    def read() -> None:
        try:
            mount.operations.read(fh, 8192, 4096).send(None)
        except StopIteration:
            return
        raise ScriptError("a READ from a view has waited")

    found = {}
    for who in ("off", "on"):
        if who == "on":
            trace.start()
        found[who] = min(timeit.repeat(read, number=5000, repeat=15)) / 5000 * 1e6
    mount.vdev.close()
    return found


def run(options: argparse.Namespace) -> Report:
    """Measure."""
    title = f"trace off and on, {options.size >> 20} MiB BO in {options.place}, medians of {options.rounds} rounds"
    report = Report(title, subject="on", reference="off")
    with ExitStack() as stack:
        programs = stack.enter_context(built("cbench"))
        device = stack.enter_context(roomy_device(options.size))
        subject = bo_subject(device, options.place, options.size, report)
        stack.enter_context(awake_processors())
        for number in range(options.rounds):
            for test in options.tests:
                console.print(f"\r  round {number + 1} of {options.rounds}: {test:<12}", end="")
                for who in ("off", "on") if number % 2 == 0 else ("on", "off"):
                    device.write("ctl/trace", "all" if who == "on" else "off")
                    found, reads = subject.run(programs["cbench"], test)
                    for name, (value, unit) in found.items():
                        report.add(name, unit, who, value)
                        if name.endswith("_p50"):
                            report.goals[name] = Goal(1.15)
                    if reads is not None and found:
                        report.add_requests(next(iter(found)), who, reads)
        console.print()
        device.write("ctl/trace", "off")
        recorded = re.search(r"entries-written: \d+/(\d+)", device.read("trace"))
        report.notes.append(f"events recorded: {recorded[1] if recorded else '?'}")
    handler = trio.run(_handler_us)
    more = handler["on"] - handler["off"]
    report.notes.append(f"the handler alone: {handler['off']:.2f} us off, {handler['on']:.2f} us on, {more:+.2f} us")
    one = look_ns()
    report.notes.append(f"a look at trace.on that is off: {one:.1f} ns; {LOOKS} of them on a fault's slow way")
    for name in report.goals:
        metric = report.metrics[name]
        fault = metric.median("off")
        if metric.unit == "us" and fault:
            share = LOOKS * one / 1000 / fault * 100
            verdict = "met" if share < 2 else "MISSED"
            on = more / fault * 100
            report.notes.append(f"cost of on, by the handlers: {on:.1f} % of {name} (goal < 15 %)")
            report.notes.append(f"cost of off: {share:.3f} % of {name} (goal < 2 %: {verdict})")
    return report
