"""metrics: the numbers of `stats` and three histograms as OpenMetrics text, by prometheus_client.

Names and units come from the table of stats' keys (`metric_name`); a region's name is the label `region`, the index of
a list the label `order`. Numbers that the table does not have are left out.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ttmfs.fs.tree.stat_keys import COUNTER, KEYS, key_of, leaves, metric_name
from ttmfs.observe.counters import Counters, Histogram

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    Family = CounterMetricFamily | GaugeMetricFamily

class Exporter:
    """A prometheus_client collector over the counters of one device. `stats` makes the stats object."""

    def __init__(self, stats: Callable[[], Mapping[str, Any]], counters: Counters) -> None:
        self._stats = stats
        self._counters = counters

    @staticmethod
    def load() -> None:
        """Import the library, which takes 0.1 s that no mount should wait for: in a thread, before the first text."""
        importlib.import_module("prometheus_client.openmetrics.exposition")

    def text(self) -> bytes:
        """The exposition."""
        from prometheus_client import CollectorRegistry  # noqa: PLC0415
        from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415

        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        exposition: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
        return exposition

    def describe(self) -> list["Metric"]:
        """Nothing: the registry need not ask before it collects."""
        return []

    def collect(self) -> Iterator["Metric"]:
        """All of it now."""
        from prometheus_client.core import InfoMetricFamily  # noqa: PLC0415

        stats = self._stats()
        found: dict[str, Family] = {}
        for path, value in leaves(stats):
            name, label = key_of(path)
            if name in KEYS and KEYS[name].kind and value is not None:
                _add(found, name, label, value)
        yield InfoMetricFamily("ttmfs", "What serves this mount.", {"version": str(stats["version"])})
        yield from found.values()
        counters = self._counters
        yield _histogram(
            "fault_latency_seconds", "READs and WRITEs that could not be answered at once.", counters.fault_seconds
        )
        yield _histogram("gate_wait_seconds", "How long requests were parked on a BO.", counters.gate_seconds)
        yield _histogram("move_bytes", "Bytes of each move.", counters.move_bytes)


def _add(found: "dict[str, Family]", name: str, label: str, value: Any) -> None:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    key = KEYS[name]
    family = found.get(name)
    if family is None:
        labels = ["region"] if "*" in name else ["order"] if isinstance(value, list) else []
        kind = CounterMetricFamily if key.kind == COUNTER else GaugeMetricFamily
        family = found[name] = kind(metric_name(name), key.does, labels=labels, unit=key.metric_unit)
    if isinstance(value, list):
        for order, number in enumerate(value):
            family.add_metric([str(order)], key.metric_value(number))
    else:
        family.add_metric([label] if label else [], key.metric_value(value))


def _histogram(name: str, does: str, histogram: Histogram) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415
    from prometheus_client.utils import floatToGoString  # noqa: PLC0415

    family = HistogramMetricFamily(f"ttmfs_{name}", does, unit=name.rpartition("_")[2])
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric([], list(zip(bounds, accumulate(histogram.counts), strict=True)), sum_value=histogram.sum)
    return family
