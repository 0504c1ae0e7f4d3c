"""The page of a study: miss-ratio curves as SVG and the table, in one file that loads nothing."""

import errno
import importlib
import io
import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape
from typing import Any, Final

from ttmfs.errors import TtmError
from ttmfs.replay.rows import Row, cells, heads, shown_columns
from ttmfs.replay.trace import Trace
from ttmfs.units import format_size

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th.left, td.left { text-align: left; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; background: #fff; border-radius: 6px; }
p.note { margin: .2rem 0; color: #a60; }
"""


def page(traces: Sequence[Trace], rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The whole text. TtmError(ENOENT) without matplotlib."""
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>ttmfs replay</title><style>{_STYLE}</style><h1>ttmfs replay</h1>",
    ]
    parts += [f"<p class='note'>{escape(note)}</p>" for note in notes]
    for trace in dict.fromkeys(row.trace for row in rows):
        of = [row for row in rows if row.trace == trace]
        parts.append(f"<h2>{escape(trace)}</h2>{_facts(traces, trace)}")
        for prefetch in dict.fromkeys(row.prefetch for row in of):
            parts.append(_figure([row for row in of if row.prefetch == prefetch], prefetch))
        parts.append(_table(of))
    return "\n".join(parts) + "\n</html>\n"


def _facts(traces: Sequence[Trace], name: str) -> str:
    trace = next(trace for trace in traces if trace.name == name)
    return (
        f"<p>{escape(trace.format)}: {trace.requests} requests for {len(trace.names)} BOs of together "
        f"{trace.footprint} bytes.</p>"
    )


def _table(rows: Sequence[Row]) -> str:
    shown = shown_columns(rows)
    names = heads()

    def line(tag: str, values: Sequence[str]) -> str:
        left = {number: " class=left" for number, name in enumerate(names) if name in ("trace", "evict", "prefetch")}
        return "".join(f"<{tag}{left.get(number, '')}>{escape(values[number])}</{tag}>" for number in shown)

    lines = [line("th", names), *(line("td", cells(row)) for row in rows)]
    return f"<table>{''.join(f'<tr>{found}</tr>' for found in lines)}</table>"


def _figure(rows: Sequence[Row], prefetch: str) -> str:
    """A curve for each policy over the sizes; bars where there is one size."""
    figure, axes = _plot()
    curves: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        curves[row.evict].append(row)
    sizes = sorted({row.size for row in rows})
    if len(sizes) > 1:
        for name, curve in curves.items():
            curve.sort(key=lambda row: row.size)
            style = "k--" if name == "belady" else "o-"
            axes.plot([row.size for row in curve], [row.miss_ratio for row in curve], style, label=name, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [format_size(size) for size in sizes], rotation=30)
        axes.minorticks_off()
        axes.set_xlabel("size of the region")
        axes.legend(frameon=False)
    else:
        axes.barh(list(curves), [curve[0].miss_ratio for curve in curves.values()])
        axes.invert_yaxis()
        axes.set_title(f"in {format_size(sizes[0])}")
    (axes.set_ylabel if len(sizes) > 1 else axes.set_xlabel)("miss ratio")
    caption = "" if prefetch == "none" else f"<figcaption>prefetch: {escape(prefetch)}</figcaption>"
    return f"<figure>{_svg(figure)}{caption}</figure>"


def _plot() -> tuple[Any, Any]:
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError:
        raise TtmError(errno.ENOENT, "--html needs matplotlib: pip install 'ttmfs[replay]'") from None
    figure = figures.Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """Only the drawing: what matplotlib writes before it names documents elsewhere, and the time."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
