"""The shipped policies by kind and name, one file a family; the docstring of each names its source."""

from collections.abc import Mapping
from typing import Final

from ttmfs.policy.api import Kind, Policy
from ttmfs.policy.shipped.arc import Arc
from ttmfs.policy.shipped.clock import Clock, Sieve
from ttmfs.policy.shipped.frequency import Gdsf, Lfu
from ttmfs.policy.shipped.lirs import Lirs
from ttmfs.policy.shipped.order import Fifo, Lru, Mru, Random
from ttmfs.policy.shipped.prefetch import NoPrefetch, Sequential, Stride, Tree, Window
from ttmfs.policy.shipped.promote import MoveRate, NoPromotion
from ttmfs.policy.shipped.quota import Quota
from ttmfs.policy.shipped.s3fifo import S3Fifo
from ttmfs.policy.shipped.segmented import Slru

SHIPPED: Final[Mapping[Kind, Mapping[str, type[Policy]]]] = {
    "evict": {
        "lru": Lru,
        "fifo": Fifo,
        "random": Random,
        "mru": Mru,
        "lfu": Lfu,
        "clock": Clock,
        "slru": Slru,
        "arc": Arc,
        "lirs": Lirs,
        "s3fifo": S3Fifo,
        "sieve": Sieve,
        "gdsf": Gdsf,
        "quota": Quota,
    },
    "prefetch": {
        "none": NoPrefetch,
        "window": Window,
        "sequential": Sequential,
        "stride": Stride,
        "tree": Tree,
    },
    "promote": {
        "none": NoPromotion,
        "moverate": MoveRate,
    },
}
