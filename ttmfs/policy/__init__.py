"""Policies: who is evicted, what is prefetched, who comes home. The public API; see docs/policies.md.

A policy imports from here: `from ttmfs.policy import BO, Evict, Region, Request`.
"""

from ttmfs.policy.api import (
    API_VERSION,
    BO,
    Evict,
    GoneWhy,
    Kind,
    Policy,
    Prefetch,
    Promote,
    Region,
    Request,
    UseWhy,
)
from ttmfs.policy.plain import PlainBO

__all__ = [
    "API_VERSION",
    "BO",
    "Evict",
    "GoneWhy",
    "Kind",
    "PlainBO",
    "Policy",
    "Prefetch",
    "Promote",
    "Region",
    "Request",
    "UseWhy",
]
