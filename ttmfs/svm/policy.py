"""MigrationPolicy: how large ranges are, and which of them a device fault takes to VRAM (the knobs svm_*).

`once` is what the first series of xe did: a range goes at the first fault and is marked `skip_migrate` before it is
tried. `always` is what the driver did later: each fault of a range that is not in VRAM takes it there. With `never` no
fault does (the driver without CONFIG_DRM_XE_PAGEMAP), only who says so: prefetch, and madvise preferred=vram.
"""

import errno
from itertools import pairwise
from typing import Final, Literal, Self, cast, get_args

from ttmfs.driver.config import Config
from ttmfs.errors import TtmError
from ttmfs.units import PAGE_SHIFT, PAGE_SIZE, format_size, parse_size

Migrate = Literal["once", "always", "never"]

_LARGEST: Final = 2 << 20
"""A range lies in one chunk."""


def parse_migrate(word: str) -> Migrate:
    """TtmError(EINVAL) for another word."""
    if word not in get_args(Migrate):
        raise TtmError(errno.EINVAL, f"svm_migrate={word[:40]!r}: say one of {' '.join(get_args(Migrate))}")
    return cast("Migrate", word)


def check_threshold(size: int) -> int:
    """Pages from bytes. TtmError(EINVAL) unless whole pages, from 4K to 2M."""
    if not PAGE_SIZE <= size <= _LARGEST or size % PAGE_SIZE:
        message = f"svm_migrate_threshold={format_size(size)}: say a multiple of 4K up to 2M (svm_migrate=never: none)"
        raise TtmError(errno.EINVAL, message)
    return size >> PAGE_SHIFT


def parse_range_sizes(text: str) -> tuple[int, ...]:
    """Pages from `2M,64K,4K`. TtmError(EINVAL) unless powers of two, descending, from at most 2M to 4K."""
    try:
        sizes = [parse_size(word) for word in text.split(",")]
    except TtmError as error:
        raise TtmError(errno.EINVAL, f"svm_range_sizes={text[:80]}: {error.message}") from None
    falling = all(one > two for one, two in pairwise(sizes))
    powers = all(size and not size & (size - 1) for size in sizes)
    if not (falling and powers and sizes[0] <= _LARGEST and sizes[-1] == PAGE_SIZE):
        message = f"svm_range_sizes={text[:80]}: say powers of two from the largest (at most 2M) to 4K, as in 2M,64K,4K"
        raise TtmError(errno.EINVAL, message)
    return tuple(size >> PAGE_SHIFT for size in sizes)


def format_range_sizes(sizes: tuple[int, ...]) -> str:
    """As `parse_range_sizes` reads it."""
    return ",".join(format_size(pages << PAGE_SHIFT) for pages in sizes)


class MigrationPolicy:
    """Of all spaces of a device. `sizes`, and what a new range is tried with, are pages, the largest first."""

    __slots__ = ("migrate", "sizes", "threshold_pages")

    def __init__(self, migrate: Migrate, threshold_pages: int, sizes: tuple[int, ...]) -> None:
        self.migrate = migrate
        self.threshold_pages = threshold_pages
        """A range with fewer pages is never migrated (VRAM page tables want 64 KiB)."""
        self.sizes = sizes
        """Of ranges that are made from now on."""

    @classmethod
    def of(cls, config: Config) -> Self:
        """As the device's options say. TtmError(EINVAL) naming the one that cannot be."""
        return cls(
            parse_migrate(config.svm_migrate),
            check_threshold(config.svm_migrate_threshold),
            parse_range_sizes(config.svm_range_sizes),
        )
