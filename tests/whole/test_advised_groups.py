"""Groups with eviction policies of their own: the region says whose turn it is, the group which of its BOs goes."""

import errno
import random
from collections.abc import Iterable, Iterator
from functools import partial

import pytest

from tests.core.advised import Told, in_region, install, prepared
from tests.core.harness import MIB, check, device, fails, idle, make, move, outcome
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.limits import set_max
from ttmfs.policy import BO, Evict, Request, deadline
from ttmfs.policy.seat import Ejection
from ttmfs.ttm import lifetime
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext
from ttmfs.ttm.dmem import Group


@pytest.fixture(autouse=True)
def timer_given_back() -> Iterator[None]:
    """The timer of this process is pytest's own timeout's."""
    with deadline.borrowed():
        yield


async def theirs(vdev: VirtualDevice, group: Group, *names: str) -> list[BufferObject]:
    """BOs of a group, 1 MiB each, in vram."""
    bos = []
    for name in names:
        bo = await make(vdev, name)
        lifetime.set_group(bo, group)
        await move(vdev, bo, "vram")
        bos.append(bo)
    await idle(*bos)
    return bos


async def newcomer(vdev: VirtualDevice, name: str) -> str:
    """One more of the root group in vram, gone again: who went for it."""
    before = {bo.name for bo in vdev.ttm.bos if bo.mem_type == "vram" and not bo.ghost}
    new = await make(vdev, name, place="vram")
    gone = before - {bo.name for bo in vdev.ttm.bos if bo.mem_type == "vram" and not bo.ghost}
    await idle(new)
    lifetime.release(new)
    return " ".join(sorted(gone))


async def test_the_lru_says_whose_turn_it_is_and_the_policy_which_of_its_bos_goes() -> None:
    async with device() as vdev:
        game = vdev.ttm.dmem.root.make("game")
        bos = [await make(vdev, "r0", place="vram"), *await theirs(vdev, game, "g0", "g1", "g2")]
        await install(vdev, "mru", "game:vram")
        assert await newcomer(vdev, "new") == "r0"
        bos += await theirs(vdev, game, "g3")
        assert await newcomer(vdev, "new") == "g3"
        await theirs(vdev, vdev.ttm.dmem.root, "r1")
        assert await newcomer(vdev, "new") == "g2"
        found = vdev.policies.stats()["evict"]
        assert (found["game:vram"]["name"], found["game:vram"]["taken"], found["vram"]["taken"]) == ("mru", 2, 0)
        assert vdev.policies.text("evict") == "system lru\ngtt lru\nvram lru\ngame:vram mru\n"
        assert vdev.policies.chosen() == ["evict game:vram mru"]
        await install(vdev, "lru", "game:vram")
        assert vdev.ttm.managers["vram"].adviser is None
        assert vdev.policies.text("evict") == "system lru\ngtt lru\nvram lru\n"
        await theirs(vdev, vdev.ttm.dmem.root, "r2")
        assert await newcomer(vdev, "new") == "g0"
        for bo in bos[1:]:
            await check(bo)


async def test_the_regions_policy_says_whose_turn_it_is_too() -> None:
    async with device() as vdev:
        game = vdev.ttm.dmem.root.make("game")
        await make(vdev, "r0", place="vram")
        await theirs(vdev, game, "g0", "g1", "g2")
        await install(vdev, "mru")
        await install(vdev, "fifo", "game:vram")
        assert await newcomer(vdev, "new") == "g0"
        found = vdev.policies.stats()["evict"]
        assert (found["vram"]["asked"], found["vram"]["taken"], found["game:vram"]["taken"]) == (1, 0, 1)
        await install(vdev, "lru")
        await make(vdev, "r1", place="vram")
        assert await newcomer(vdev, "new") == "r0"
        assert vdev.ttm.managers["vram"].adviser is not None


async def test_over_max_and_when_max_is_lowered_the_policy_is_asked() -> None:
    async with device() as vdev:
        other = await make(vdev, "other", place="vram")
        game = vdev.ttm.dmem.root.make("game")
        await install(vdev, "mru", "game:vram")
        game.pools["vram"].max = 3 * MIB
        bos = await theirs(vdev, game, "g0", "g1", "g2", "g3")
        assert in_region(vdev, [other, *bos], "vram") == {"other", "g0", "g1", "g3"}
        assert await set_max(vdev, game.pools["vram"], MIB) == 2 * MIB
        assert in_region(vdev, [other, *bos], "vram") == {"other", "g0"}
        assert vdev.policies.stats()["evict"]["game:vram"]["taken"] == 3
        await calls.evict_region(vdev, "vram", None, OperationContext())
        assert vdev.policies.stats()["evict"]["game:vram"]["taken"] == 4
        assert vdev.policies.stats()["evict"]["game:vram"]["ejected"] == 0


async def test_lowering_max_goes_in_the_order_of_the_regions_policy() -> None:
    async with device() as vdev:
        game = vdev.ttm.dmem.root.make("game")
        bos = await theirs(vdev, game, "g0", "g1", "g2")
        await install(vdev, "mru")
        assert await set_max(vdev, game.pools["vram"], 2 * MIB) == MIB
        assert in_region(vdev, bos, "vram") == {"g0", "g1"}


async def test_groups_below_are_the_policys_and_have_their_own_order() -> None:
    async with device() as vdev:
        above = vdev.ttm.dmem.root.make("above")
        below = above.make("below")
        told = Told()
        await install(vdev, told, "above:vram")
        assert told.take() == [f"attach vram {4 * MIB}"]
        bos = [*await theirs(vdev, above, "a0"), *await theirs(vdev, below, "b0", "b1", "b2")]
        assert [word for word in told.take() if word.startswith("added")] == [f"added {bo.name}" for bo in bos]
        await install(vdev, "fifo", "/above/below:vram")
        # The LRU says a0, its group the youngest, b2, and the group of that one its oldest.
        assert await newcomer(vdev, "new") == "b0"
        assert [text.split()[1] for text in told.take() if "removed" in text] == ["b0"]
        found = vdev.policies.stats()["evict"]
        assert (found["above:vram"]["taken"], found["above/below:vram"]["taken"]) == (0, 1)
        assert vdev.policies.text("evict").endswith("above:vram told\nabove/below:vram fifo\n")


async def test_a_bo_that_changes_its_group_is_another_policys() -> None:
    async with device() as vdev:
        one, two = (vdev.ttm.dmem.root.make(name) for name in ("one", "two"))
        first, second, whole = Told(), Told(), Told()
        bos = await theirs(vdev, one, "b0", "b1")
        await install(vdev, first, "one:vram")
        await install(vdev, second, "two:vram")
        await install(vdev, whole)
        assert {bo.name for bo in first.here} == {"b0", "b1"}
        for told in (first, second, whole):
            told.take()
        lifetime.set_group(bos[0], two)
        lifetime.set_group(bos[0], two)
        lifetime.set_group(bos[1], vdev.ttm.dmem.root)
        assert first.take() == ["removed b0 moved", "removed b1 moved"]
        assert second.take() == ["added b0"]
        assert whole.take() == []
        await move(vdev, bos[0], "vram")
        assert (first.take(), second.take(), whole.take()) == ([], ["used b0 validate"], ["used b0 validate"])
        await calls.evict_one(vdev, bos[0], OperationContext())
        assert (second.take(), whole.take()) == (["removed b0 evicted"], ["removed b0 evicted"])


async def test_the_policy_goes_with_its_group() -> None:
    async with device() as vdev:
        root = vdev.ttm.dmem.root
        game = root.make("game")
        await install(vdev, "mru", "game:vram")
        await install(vdev, "fifo", "game:gtt")
        (bo,) = await theirs(vdev, game, "b0")
        with fails(errno.EBUSY):
            game.remove()
        assert vdev.policies.text("evict").endswith("game:gtt fifo\ngame:vram mru\n")
        await move(vdev, bo, "none")
        game.remove()
        assert vdev.policies.text("evict") == "system lru\ngtt lru\nvram lru\n"
        assert list(vdev.policies.stats()["evict"]) == ["system", "gtt", "vram"]
        assert vdev.ttm.managers["vram"].adviser is None
        # One of the same name is another group.
        root.make("game")
        assert vdev.policies.text("evict") == "system lru\ngtt lru\nvram lru\n"


async def test_what_cannot_be_says_why() -> None:
    async with device() as vdev:
        vdev.ttm.dmem.root.make("game")
        for words, code, why in (
            ("gone:vram fifo", errno.ENOENT, "there is no group 'gone'"),
            ("game/gone:vram fifo", errno.ENOENT, "there is no group 'game/gone'"),
            ("game:vrm fifo", errno.EINVAL, "did you mean vram"),
            ("game: fifo", errno.EINVAL, "no region is named"),
            ("game:system fifo", errno.EINVAL, "no region that groups are charged for: say one of gtt vram"),
            ("game:vram", errno.EINVAL, "GROUP:REGION NAME"),
            ("game:vram nope", errno.EINVAL, "no evict policy"),
        ):
            with pytest.raises(Exception, match=why) as found:
                vdev.policies.prepare(vdev.policies.parse("evict", words.split())[1])
            assert getattr(found.value, "errno", 0) == code
        assert vdev.policies.parse("evict", ["/game:vram", "mru"])[0] == "game:vram"
        assert vdev.policies.parse("evict", [":vram", "mru"])[0] == "vram"


class Raises(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        raise KeyError("tex0")


class Nothing(Told):
    def victims(self, request: Request) -> Iterable[BO]:
        return ()


@pytest.mark.parametrize("policy", [Raises, Nothing])
@pytest.mark.parametrize("whole", ["lru", "fifo"])
async def test_a_bad_one_is_ejected_and_the_regions_order_counts_for_that_request(
    policy: type[Told], whole: str
) -> None:
    async with device() as vdev:
        game = vdev.ttm.dmem.root.make("game")
        ejections: list[Ejection] = []
        vdev.policies.report = ejections.append
        await theirs(vdev, game, "g0", "g1", "g2", "g3")
        await install(vdev, whole)
        await install(vdev, policy(), "game:vram")
        assert await newcomer(vdev, "new") == "g0"
        assert [(one.region, one.policy) for one in ejections] == [("game:vram", policy.__name__.lower())]
        assert str(ejections[0]).endswith("the region's order is back")
        found = vdev.policies.stats()["evict"]["game:vram"]
        assert (found["name"], found["ejected"], found["last_error"]) == ("lru", 1, str(ejections[0]))
        assert vdev.policies.text("evict") == f"system lru\ngtt lru\nvram {whole}\n"
        assert (vdev.ttm.managers["vram"].adviser is None) == (whole == "lru")


async def test_one_that_cannot_begin_leaves_nothing_behind() -> None:
    class Refuses(Evict):
        def added(self, bo: BO) -> None:
            raise ValueError("no")

        def victims(self, request: Request) -> Iterable[BO]:
            return ()

    async with device() as vdev:
        game = vdev.ttm.dmem.root.make("game")
        await theirs(vdev, game, "g0")
        with fails(errno.EINVAL):
            await vdev.policies.choose("evict", "game:vram", prepared("evict", Refuses()))
        assert list(vdev.policies.stats()["evict"]) == ["system", "gtt", "vram"]
        assert vdev.ttm.managers["vram"].adviser is None


async def test_what_protects_a_group_holds_whoever_is_named() -> None:
    async with device() as vdev:
        game, browser = (vdev.ttm.dmem.root.make(name) for name in ("game", "browser"))
        game.pools["vram"].protect(low=2 * MIB)
        kept = await theirs(vdev, game, "g0", "g1")
        told = Told()
        await install(vdev, told, "game:vram")
        await install(vdev, "mru", "browser:vram")
        bos = await theirs(vdev, browser, "t0", "t1", "t2", "t3")
        assert in_region(vdev, [*kept, *bos], "vram") == {"g0", "g1", "t0", "t3"}
        assert not told.requests


async def test_policies_of_groups_know_at_every_moment_who_is_there() -> None:
    for seed in range(6):
        rng = random.Random(seed)
        async with device() as vdev:
            a = vdev.ttm.dmem.root.make("a")
            groups = [vdev.ttm.dmem.root, a, a.make("b"), vdev.ttm.dmem.root.make("c")]
            tolds = {group: Told() for group in groups[1:]}
            bos = [await make(vdev, f"b{number}", rng.choice((1, 2)) * MIB // 2) for number in range(12)]
            for bo in bos[:5]:
                lifetime.set_group(bo, rng.choice(groups))
                await outcome(partial(move, vdev, bo, "vram"))
            for group, told in tolds.items():
                await install(vdev, told, f"{group.name}:vram")
            for _ in range(80):
                bo = rng.choice(bos)
                what = rng.randrange(9)
                if what < 4:
                    await outcome(partial(move, vdev, bo, rng.choice(("vram", "vram gtt", "gtt", "none"))))
                elif what == 4:
                    await outcome(partial(calls.evict_one, vdev, bo, OperationContext()))
                elif what == 5:
                    bo.unpin() if bo.pin_count else bo.pin()
                elif what == 6:
                    lifetime.set_group(bo, rng.choice(groups))
                elif what == 7:
                    pool = rng.choice(groups[1:]).pools["vram"]
                    await set_max(vdev, pool, rng.choice((4, 4, 2)) * MIB)
                    pool.max = 8 * MIB
                else:
                    lifetime.release(bo)
                    bos[bos.index(bo)] = await make(vdev, f"n{rng.random()}", MIB // 2)
                for group, told in tolds.items():
                    there = [bo for bo in bos if group in bo.group.chain]
                    assert {view.name for view in told.here} == in_region(vdev, there, "vram"), f"seed {seed}"
            assert not any(found["ejected"] for found in vdev.policies.stats()["evict"].values()), f"seed {seed}"
