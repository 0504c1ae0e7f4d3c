"""What the tests of the page pool share: pools of a few MiB, a clock that is set, what must be refused."""

import errno

import numpy as np
import pytest

from ttmfs.errors import TtmError
from ttmfs.memory.arena import Arena
from ttmfs.memory.pool import PagePool


class Clock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def make(num_pages: int = 4096, limit: int = 0, reserve: int = 0, beneficial: int = 9, warm: int = 0) -> PagePool:
    return PagePool(
        Arena("system", num_pages),
        limit_pages=limit,
        reserve_pages=reserve,
        warm_pages=warm,
        beneficial_order=beneficial,
        now=Clock(),
    )


def page_array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint32)


def refused(pool: PagePool, pages: int, **options: object) -> None:
    before, counts = pool.free_by_order(), (pool.in_use_pages, pool.pooled_pages)
    with pytest.raises(TtmError) as error:
        pool.alloc(pages, **options)  # type: ignore[arg-type]
    assert error.value.errno == errno.ENOMEM
    assert pool.free_by_order() == before
    assert (pool.in_use_pages, pool.pooled_pages) == counts
    pool.check()
