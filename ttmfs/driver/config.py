"""Config: what a device is made of and how it behaves; one field per mount option."""

from dataclasses import dataclass

from ttmfs.policy.api import Kind
from ttmfs.ttm.dmem import Protection

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Region:
    """An extra memory region: `size` bytes managed by `manager` (`buddy` or `range`)."""

    name: str
    size: int
    manager: str = "buddy"


@dataclass(slots=True)
class Config:
    """Sizes are bytes, times seconds, prefault pages. `visible_vram` None means all of it."""

    vram: int = 256 * MIB
    visible_vram: int | None = None
    gtt: int = 512 * MIB
    regions: tuple[Region, ...] = ()
    memory: int = 1024 * MIB
    pages_limit: int | None = None
    pool_limit: int = 64 * MIB
    swap: int = 2048 * MIB
    swap_store: str = "shmem"
    beneficial_order: int = 9
    copy_engines: int = 1
    compute_engines: int = 2
    copy_bandwidth: float = 0.0
    copy_latency: float = 0.0
    sync_moves: bool = False
    placement: str = "system"
    prefault: int = 256
    driver: str = "default"
    fault_timeout: float = 15.0
    command_timeout: float = 60.0
    propagate_enospc: bool = False
    purgeable: str = "zeros"
    """What a purged BO is to who wants its content: `zeros`, or an error (`strict`)."""
    allow_other: bool = False
    user_pins: bool = False
    user_limit: str = ""
    dmem_protection: Protection = "newer"
    """Whose rules protect groups: those of the newer series, or of the released kernels."""
    svm_notifier_size: int = 512 * MIB
    svm_migrate: str = "once"
    svm_migrate_threshold: int = 64 << 10
    svm_range_sizes: str = "2M,64K,4K"
    """As ttmfs.svm.policy reads them."""
    stock_loop: bool = False
    watchdog: float = 30.0
    policies: tuple[tuple[Kind, tuple[str, ...]], ...] = ()
    """Kind and words, as Policies.choose takes them."""
    source: str = "ttmfs"
    """What the mount table says is mounted."""
