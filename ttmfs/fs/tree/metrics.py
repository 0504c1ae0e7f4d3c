"""metrics: the numbers of `stats` and three histograms as OpenMetrics text, by prometheus_client.

Names and units come from the table of stats' keys (`metric_name`); names in a key are labels (`region`, `group`), and
the index of a list is the label `order`. Numbers that the table does not have are left out.
"""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from ttmfs.fs.tree.stat_keys import COUNTER, KEYS, key_of, labels_of, leaves, metric_name
from ttmfs.observe.counters import Counters, Histogram

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

    Family = CounterMetricFamily | GaugeMetricFamily


class _Observed(NamedTuple):
    """What of `metrics` is a histogram: its name without the prefix, a sentence, and the numbers."""

    name: str
    does: str
    histogram: Histogram


class Exporter:
    """A prometheus_client collector of what a device has counted when this is made; `text` may run in any thread."""

    def __init__(self, stats: Mapping[str, Any], counters: Counters) -> None:
        self._stats = stats
        self._histograms = (
            _Observed(
                "fault_latency_seconds",
                "READs and WRITEs that could not be answered at once.",
                counters.fault_seconds.copy(),
            ),
            _Observed("gate_wait_seconds", "How long requests were parked on a BO.", counters.gate_seconds.copy()),
            _Observed("move_bytes", "Bytes of each move.", counters.move_bytes.copy()),
        )

    def text(self) -> bytes:
        """The exposition. The first one imports the library, which takes 0.1 s that no mount should wait for."""
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

        found: dict[str, Family] = {}
        for path, value in leaves(self._stats):
            name, labels = key_of(path)
            if name in KEYS and KEYS[name].kind and value is not None:
                _add(found, name, labels, value)
        yield InfoMetricFamily("ttmfs", "What serves this mount.", {"version": str(self._stats["version"])})
        yield from found.values()
        yield from (_histogram(*observed) for observed in self._histograms)


def _add(found: "dict[str, Family]", name: str, labels: tuple[str, ...], value: Any) -> None:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

    key = KEYS[name]
    family = found.get(name)
    if family is None:
        which = ["order"] if isinstance(value, list) else labels_of(name)
        kind = CounterMetricFamily if key.kind == COUNTER else GaugeMetricFamily
        family = found[name] = kind(metric_name(name), key.does, labels=which, unit=key.metric_unit)
    if isinstance(value, list):
        for order, number in enumerate(value):
            family.add_metric([str(order)], key.metric_value(number))
    else:
        # A group's name is any bytes, and the text is UTF-8.
        said = [label.encode("utf-8", "backslashreplace").decode() for label in labels]
        family.add_metric(said, key.metric_value(value))


def _histogram(name: str, does: str, histogram: Histogram) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415
    from prometheus_client.utils import floatToGoString  # noqa: PLC0415

    family = HistogramMetricFamily(f"ttmfs_{name}", does, unit=name.rpartition("_")[2])
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric([], list(zip(bounds, accumulate(histogram.counts), strict=True)), sum_value=histogram.sum)
    return family
