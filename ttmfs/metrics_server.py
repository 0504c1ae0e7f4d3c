"""Metrics over HTTP: the `metrics` of a mount, served by prometheus_client's own server.

It is a process of its own, which reads the mount as any program does: whoever connects, however often, takes nothing
of the daemon's but what a read of that file takes.
"""

import errno
import os
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ttmfs import mounts
from ttmfs.errors import TtmError
from ttmfs.metrics_process import parse_address
from ttmfs.status import read_text

_LOOK_SECONDS: Final = 1.0
"""Between two looks at whether the mount is there still."""


class _Mounted:
    """A collector over the text of a mount. `ttmfs_up` says whether the mount answered."""

    def __init__(self, path: str) -> None:
        self._path = path

    def describe(self) -> list[Metric]:
        """Nothing: the registry need not ask before it collects."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What the mount says now."""
        try:
            found = list(text_string_to_metric_families(read_text(self._path, "metrics")))  # type: ignore[no-untyped-call]
        except TtmError:
            found = []
        yield GaugeMetricFamily("ttmfs_up", "Whether the mount answered.", value=int(bool(found)))
        yield from found


class Server:
    """Listens from the start; TtmError, with what to do, when it cannot."""

    def __init__(self, path: str, address: str) -> None:
        self._path = path
        host, port = parse_address(address)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Mounted(path))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
            raise TtmError(
                error.errno or errno.EIO, f"cannot listen on {address}: {reason}: say another port, or 0 for any"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def serve(self) -> None:
        """Until the mount is gone."""
        while self._path in mounts.all_mounts():
            time.sleep(_LOOK_SECONDS)

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
