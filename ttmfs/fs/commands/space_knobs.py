"""The run-time knobs of address spaces in ctl/config, and what values they take."""

import errno
import math
from typing import Final

from ttmfs.errors import TtmError
from ttmfs.svm.policy import check_threshold, format_range_sizes, parse_migrate, parse_range_sizes
from ttmfs.svm.spaces import Svm
from ttmfs.units import PAGE_SHIFT, parse_size

MIN_NOTIFIER_SIZE: Final = 1 << 20
MAX_NOTIFIER_SIZE: Final = 1 << 40
MAX_TIMESLICE_MS: Final = 60_000.0


def check_notifier_size(size: int) -> int:
    """The window of one notifier, bytes. TtmError(EINVAL) unless it is a power of two from 1M to 1T."""
    if not MIN_NOTIFIER_SIZE <= size <= MAX_NOTIFIER_SIZE or size & (size - 1):
        raise TtmError(errno.EINVAL, f"svm_notifier_size={size}: say a power of two from 1M to 1T, as in 512M")
    return size


def svm_knobs(svm: Svm) -> dict[str, str]:
    """What ctl/config shows."""
    return {
        "svm_notifier_size": str(svm.notifier_size),
        "atomic_svm_timeslice_ms": f"{svm.atomic_timeslice_ms:g}",
        "svm_migrate": svm.policy.migrate,
        "svm_migrate_threshold": str(svm.policy.threshold_pages << PAGE_SHIFT),
        "svm_range_sizes": format_range_sizes(svm.policy.sizes),
    }


def set_svm_knob(svm: Svm, key: str, value: str) -> bool:
    """Change one; False when it is none of these. TtmError(EINVAL). A new window counts for spaces made afterwards."""
    if key == "svm_notifier_size":
        svm.notifier_size = check_notifier_size(parse_size(value))
    elif key == "svm_migrate":
        svm.policy.migrate = parse_migrate(value)
    elif key == "svm_migrate_threshold":
        svm.policy.threshold_pages = check_threshold(parse_size(value))
    elif key == "svm_range_sizes":
        svm.policy.sizes = parse_range_sizes(value)
    elif key == "atomic_svm_timeslice_ms":
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if not 0 <= milliseconds <= MAX_TIMESLICE_MS:
            raise TtmError(errno.EINVAL, f"{key}={value[:40]!r}: say milliseconds, 0 to {MAX_TIMESLICE_MS:g}")
        svm.atomic_timeslice_ms = milliseconds
    else:
        return False
    return True
