"""`--plot FILE`: ratios with their spread and their goals, drawn with matplotlib.

One line a row that has a ratio: the dot is the ratio of the medians, the bar goes from the smallest to the largest
ratio of a round, the mark is the goal. The scale is logarithmic: twice as fast and half as fast are equally far from 1.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from lib.device import ScriptError

ENDINGS = (".svg", ".png", ".pdf")
GOOD, BAD, PLAIN = "#2a7f3f", "#b3261e", "#3b5b8c"
ROW_INCHES = 0.24


def check() -> None:
    """ScriptError when nothing can be drawn here; before minutes of measuring, not after them."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ScriptError("--plot needs matplotlib: pip install 'ttmfs[replay]'")


def rows(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a report that have a ratio to draw."""
    return [(name, metric) for name, metric in report["metrics"].items() if metric.get("ratio")]


def missed(report: dict[str, Any]) -> list[str]:
    """The rows whose goals were missed, each with its ratio and the goal."""
    return [f"{name} {m['ratio']:.2f} x ({m['goal']})" for name, m in rows(report) if m.get("met") is False]


def draw(reports: list[dict[str, Any]], path: Path) -> None:
    """All of `reports`, one below the other, into `path`. ScriptError for an ending that is none of a picture."""
    check()
    if path.suffix not in ENDINGS:
        raise ScriptError(f"{path}: a picture ends with one of {' '.join(ENDINGS)}")
    import matplotlib  # noqa: PLC0415 - only --plot needs it

    matplotlib.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    shown = [report for report in reports if rows(report)]
    if not shown:
        raise ScriptError("nothing was measured that could be drawn")
    counts = [len(rows(report)) for report in shown]
    figure, all_axes = pyplot.subplots(
        len(shown),
        figsize=(9, ROW_INCHES * (sum(counts) + 5 * len(shown))),
        height_ratios=counts,
        squeeze=False,
        layout="constrained",
    )
    for axes, report in zip(all_axes[:, 0], shown, strict=True):
        _one(axes, report)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _one(axes: Any, report: dict[str, Any]) -> None:
    found = rows(report)
    for at, (_name, metric) in enumerate(found):
        colour = PLAIN if metric.get("met") is None else GOOD if metric["met"] else BAD
        if ratios := metric.get("ratios"):
            axes.plot([min(ratios), max(ratios)], [at, at], color=colour, linewidth=3, alpha=0.35)
        axes.plot([metric["ratio"]], [at], "o", color=colour, markersize=5)
        if metric.get("goal"):
            axes.plot([float(metric["goal"].split()[1])], [at], "|", color="black", markersize=11)
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks(
        range(len(found)), [f"{name} ({metric['unit']})" if metric["unit"] else name for name, metric in found]
    )
    axes.tick_params(labelsize=8)
    axes.set_title(
        f"{report['subcommand']}: {report['title']}; {report['subject']} / {report['reference']}", fontsize=9
    )
