"""What tests of a device with policies share: policies as classes, and one that writes down what it is told."""

from collections.abc import Iterable
from typing import Any

from ttmfs.driver.device import VirtualDevice
from ttmfs.policy import BO, Evict, GoneWhy, Policy, Region, Request, UseWhy
from ttmfs.policy.adviser import Adviser
from ttmfs.policy.api import Kind
from ttmfs.policy.deadline import run_unwatched
from ttmfs.policy.parameters import Spec
from ttmfs.policy.registry import Prepared, entry_of
from ttmfs.ttm.bo import BufferObject


def prepared(kind: Kind, policy: Policy) -> Prepared:
    """This very object as a policy that is to be installed."""

    class Found(type(policy)):  # type: ignore[misc]
        def __new__(cls) -> Any:
            return policy

        def __init__(self) -> None:
            pass

    name = type(policy).__name__.lower()
    return Prepared(Spec(kind, name), entry_of(kind, name, Found))


def let_take_long(vdev: VirtualDevice) -> None:
    """No policy of this device is ever too slow: on a loaded machine that says nothing of it."""
    advisers: list[Adviser[Any]] = [region.policy for region in vdev.policies.evict.values()]
    for region in vdev.policies.evict.values():
        region._runner = run_unwatched
    for adviser in (*advisers, vdev.policies.prefetch.policy, vdev.policies.promote):
        adviser._run = run_unwatched


async def install(
    vdev: VirtualDevice, policy: Policy | str, region: str = "vram", kind: Kind = "evict", *, watched: bool = False
) -> None:
    """A policy object, or one as it is written; `watched`: within its deadlines."""
    if not watched:
        let_take_long(vdev)
    if isinstance(policy, str):
        words = policy.split()
        place, spec = vdev.policies.parse(kind, [region, *words] if kind == "evict" else words)
        await vdev.policies.choose(kind, place, vdev.policies.prepare(spec))
    else:
        await vdev.policies.choose(kind, region if kind == "evict" else "", prepared(kind, policy))


class Told(Evict):
    """Knows who is there, writes down what it is told, and names the youngest first."""

    def __init__(self) -> None:
        self.here: dict[BO, None] = {}
        self.told: list[str] = []
        self.requests: list[Request] = []

    def attach(self, region: Region) -> None:
        self.told.append(f"attach {region.name} {region.size}")

    def added(self, bo: BO) -> None:
        assert bo not in self.here
        self.here[bo] = None
        self.told.append(f"added {bo.name}")

    def used(self, bo: BO, why: UseWhy) -> None:
        assert bo in self.here
        self.told.append(f"used {bo.name} {why}")

    def removed(self, bo: BO, why: GoneWhy) -> None:
        del self.here[bo]
        self.told.append(f"removed {bo.name} {why}")

    def victims(self, request: Request) -> Iterable[BO]:
        self.requests.append(request)
        return list(self.here)[::-1]

    def take(self) -> list[str]:
        """What it was told since the last time."""
        told, self.told = self.told, []
        return told


def in_region(vdev: VirtualDevice, bos: Iterable[BufferObject], region: str) -> set[str]:
    """Names of those of `bos` that live there."""
    return {bo.name for bo in bos if not bo.deleted and bo.resource is not None and bo.mem_type == region}
