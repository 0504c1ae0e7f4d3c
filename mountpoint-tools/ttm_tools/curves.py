"""Curves of a recording: what is used, rates, latencies, over time, as PNG."""

import io
import itertools
from collections.abc import Callable
from typing import Any, Final

from ttm_tools.extras import needed
from ttm_tools.traceformat import Event, Parsed

# Okabe and Ito: told apart by the colour-blind too.
_COLOURS: Final = ("#009e73", "#e69f00", "#0072b2", "#cc79a7", "#d55e00", "#56b4e9")
_LATENCIES: Final = (
    ("fault", "latency_us", "faults"),
    ("gate_wait", "wait_us", "waits at the gate"),
    ("unmap", "unmap_us", "unmaps"),
)


def curves(parsed: Parsed) -> bytes | None:
    """A picture of a recording's curves below each other; None when there is nothing to draw."""
    # matplotlib takes half a second to import.
    with needed("a picture", "matplotlib", "tools"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

    times = [event.when for event in parsed.events] + [when for when, _values in parsed.samples]
    if not times:
        return None
    start = min(times)
    parts: list[Callable[[Any], None]] = []
    if len(parsed.samples) > 1:
        parts += [lambda axes: _used(axes, parsed, start), lambda axes: _rates(axes, parsed, start)]
    if any(event.number(key) is not None for event in parsed.events for _name, key, _label in _LATENCIES):
        parts.append(lambda axes: _latencies(axes, parsed.events, start))
    if any(event.name in ("evict", "move_end") for event in parsed.events):
        parts.append(lambda axes: _evictions(axes, parsed.events, start, max(times)))
    if not parts:
        return None
    figure = Figure(figsize=(11, 2.3 * len(parts) + 0.3), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    every = figure.subplots(len(parts), 1, sharex=True, squeeze=False)
    for axes, part in zip(every[:, 0], parts, strict=True):
        part(axes)
        # Beside the curves, which may be anywhere.
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0.2, frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
        axes.margins(x=0.01)
    every[-1, 0].set_xlabel("seconds")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _used(axes: Any, parsed: Parsed, start: float) -> None:
    when = [time - start for time, _values in parsed.samples]
    names = list(dict.fromkeys(name for _time, values in parsed.samples for name in values.get("regions", {})))
    for name, colour in zip(names, itertools.cycle(_COLOURS), strict=False):
        used = [values.get("regions", {}).get(name, 0) / (1 << 20) for _time, values in parsed.samples]
        axes.step(when, used, where="post", label=name, color=colour)
    axes.set_ylabel("MiB used")


def _rates(axes: Any, parsed: Parsed, start: float) -> None:
    for (key, label), colour in zip((("faults", "faults/s"), ("moves", "moves/s")), _COLOURS[3:], strict=False):
        when, rate = [], []
        for (one, before), (other, after) in itertools.pairwise(parsed.samples):
            if other > one:
                when.append(other - start)
                rate.append(max(0.0, (after.get(key, 0) - before.get(key, 0)) / (other - one)))
        axes.plot(when, rate, label=label, color=colour)
    axes.set_ylabel("a second")


def _latencies(axes: Any, events: list[Event], start: float) -> None:
    for (name, key, label), colour, mark in zip(_LATENCIES, _COLOURS[2:], ".x+", strict=False):
        points = [
            (event.when - start, value) for event in events if event.name == name and (value := event.number(key))
        ]
        if points:
            axes.plot(*zip(*points, strict=True), mark, label=label, color=colour, markersize=4, rasterized=True)
    axes.set_yscale("log")
    axes.set_ylabel("µs")


def _evictions(axes: Any, events: list[Event], start: float, end: float) -> None:
    for (name, label), colour in zip((("move_end", "moves"), ("evict", "evictions")), _COLOURS[1::2], strict=False):
        when = [event.when - start for event in events if event.name == name]
        axes.hist(when, bins=100, range=(0, max(end - start, 1e-6)), label=label, color=colour, alpha=0.8)
    axes.set_ylabel("events")
