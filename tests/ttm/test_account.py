"""Who pays for what: limits of users (EDQUOT), charges that follow what they are for, sums that add up."""

import errno
from typing import Any

import pytest
import trio
import trio.testing

from tests.core.advised import install
from tests.core.harness import MIB, PAGE, check, device, idle, make, move, outcome, pattern
from tests.driver.defrag_tools import content, defrag, scattered
from ttmfs.driver import calls
from ttmfs.driver.device import VirtualDevice
from ttmfs.driver.engine import CopyEngine
from ttmfs.driver.jobs import Job
from ttmfs.driver.limits import check_accounts, format_user_limit, parse_user_limit, set_user_limit
from ttmfs.driver.submit import submit_job
from ttmfs.errors import TtmError
from ttmfs.svm import calls as svm_calls
from ttmfs.svm import cpu
from ttmfs.svm.spaces import Svm
from ttmfs.sync.resv import Usage
from ttmfs.ttm import access, lifetime
from ttmfs.ttm.backup import BackupFlags
from ttmfs.ttm.bo import BufferObject
from ttmfs.ttm.context import OperationContext

ANNA, BERT = 1001, 1002


def theirs(vdev: VirtualDevice, uid: int, name: str, size: int = 0) -> BufferObject:
    """A BO of a user, of holes."""
    bo = vdev.create_bo(name, vdev.ttm.accounts.of(uid))
    lifetime.set_size(bo, size)
    return bo


async def fill(bo: BufferObject, size: int) -> None:
    """What `check` expects."""
    await access.write(bo, 0, pattern(bo.name, size))


def charged(vdev: VirtualDevice, uid: int) -> dict[str, int]:
    return {what: count for what, count in vdev.ttm.accounts.of(uid).charged.items() if what != "system"}


async def test_memory_ends_at_the_limit_and_nobody_else_hears_of_it() -> None:
    async with device(user_limit="memory=1M") as vdev:
        bo, other = theirs(vdev, ANNA, "a"), theirs(vdev, BERT, "b")
        await fill(bo, MIB)
        with pytest.raises(TtmError, match=r"user 1001 has 1M of the 1M of memory .* 8K more.*unlink") as caught:
            await access.write(bo, MIB, bytes(2 * PAGE))
        assert caught.value.errno == errno.EDQUOT
        assert bo.size == MIB
        assert charged(vdev, ANNA) == {"memory": 256}
        await fill(other, MIB)
        lifetime.set_size(bo, MIB - 2 * PAGE)
        await access.write(bo, MIB - 2 * PAGE, pattern("a", MIB)[-2 * PAGE :])
        await check(bo)
        assert await outcome(lambda: access.read(theirs(vdev, ANNA, "c", PAGE), 0, PAGE)) == errno.EDQUOT


async def test_what_is_prefetched_ends_there_too() -> None:
    async with device(user_limit="memory=68K", prefault=256) as vdev:
        bo = theirs(vdev, ANNA, "a", MIB)
        for page in range(17):
            await access.read(bo, page * PAGE, PAGE)
        assert charged(vdev, ANNA) == {"memory": 17}
        assert await outcome(lambda: access.read(bo, 20 * PAGE, PAGE)) == errno.EDQUOT


async def test_nobody_gives_memory_up_for_what_is_refused() -> None:
    async with device(user_limit="memory=1M", memory=8 * MIB, pages_limit=4 * MIB, vram=0) as vdev:
        victim = theirs(vdev, BERT, "b")
        await fill(victim, MIB)
        mine = theirs(vdev, ANNA, "a")
        await fill(mine, MIB)
        full = await make(vdev, "owner", 2 * MIB)
        with trio.fail_after(60):
            while vdev.ttm.over_limit(2 * vdev.ttm.pages_gap) > 0:  # kswapd makes the room that is always to be there
                await trio.sleep(0.001)
        backed_up = vdev.ttm.counters.backup.pages_out
        for _ in range(3):
            assert await outcome(lambda: access.write(mine, MIB, bytes(MIB))) == errno.EDQUOT
        assert vdev.ttm.counters.backup.pages_out == backed_up
        await check(full)
        await check(victim)


async def test_the_second_copy_is_charged_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a user would be over a limit for a while because the device brings memory together."""

    def memory_of(uid: int) -> int:
        assert check_accounts(vdev) == []
        return vdev.ttm.accounts.of(uid).charged.get("memory", 0)

    def fails(*_arguments: object, **_options: object) -> None:
        raise TtmError(errno.ENOMEM, "made to fail")

    async with device() as vdev:
        bo, data = await scattered(vdev, "a", 4 * MIB)
        anna, bert = vdev.ttm.accounts.of(ANNA), vdev.ttm.accounts.of(BERT)
        lifetime.set_account(bo, anna)
        with monkeypatch.context() as patch:
            patch.setattr(CopyEngine, "submit", fails)
            with pytest.raises(TtmError, match="made to fail"):
                await defrag(vdev, bo)
        assert (memory_of(ANNA), vdev.pool.in_use_pages) == (1024, 1024)
        vdev.engines[0].paused = True
        assert (await defrag(vdev, bo))["moved"] == 1
        assert vdev.pool.in_use_pages == 2048, "both are there"
        assert memory_of(ANNA) == 1024
        lifetime.set_account(bo, bert)
        assert (memory_of(ANNA), memory_of(BERT)) == (0, 1024)
        vdev.engines[0].paused = False
        await bo.resv.wait(Usage.KERNEL)
        assert (memory_of(BERT), vdev.pool.in_use_pages) == (1024, 1024)
        assert await content(bo) == data
        del anna, bert


async def test_a_place_over_the_limit_is_passed_over_and_refused_only_when_it_was_the_last() -> None:
    async with device(user_limit="vram=1M") as vdev:
        first, second = theirs(vdev, ANNA, "a", MIB), theirs(vdev, ANNA, "b", MIB)
        await move(vdev, first, "vram")
        await fill(second, MIB)
        await move(vdev, second, "vram gtt")
        assert second.mem_type == "gtt"
        await calls.pin(vdev, first)
        with pytest.raises(TtmError, match=r"1001 has 1M of the 1M of vram that it may have, and needs 1M") as caught:
            await move(vdev, second, "vram")
        assert caught.value.errno == errno.EDQUOT
        assert (second.mem_type, first.mem_type) == ("gtt", "vram")
        assert await outcome(lambda: calls.validate_many(
            vdev, [second, theirs(vdev, ANNA, "c", PAGE)], vdev.parse_placement(["vram"]), OperationContext()
        )) == errno.EDQUOT
        assert charged(vdev, ANNA) == {"vram": 256, "gtt": 256, "memory": 256}
        await check(second)
        await calls.unpin(vdev, first)
        # In its own place it may be what it is, or less.
        await move(vdev, first, "vram:topdown vram@0-255")
        await calls.evict_one(vdev, first, OperationContext())
        await move(vdev, second, "vram")
        await check(second)


async def test_what_one_has_goes_before_one_is_refused_and_nobody_elses() -> None:
    """As for dmem.max: in the order of eviction, no more than needed, only what the same user pays for."""
    async with device(user_limit="vram=2M", vram=8 * MIB) as vdev:
        bert = theirs(vdev, BERT, "bert", MIB)
        await move(vdev, bert, "vram")
        first, second, third = (theirs(vdev, ANNA, name, MIB) for name in "abc")
        for bo in (first, second, third):
            await fill(bo, MIB)
            await move(vdev, bo, "vram")
        assert [bo.mem_type for bo in (first, second, third, bert)] == ["gtt", "vram", "vram", "vram"]
        # A place elsewhere is better than an eviction, for limits as for full regions.
        await move(vdev, first, "system")
        await move(vdev, first, "vram gtt")
        assert first.mem_type == "gtt"
        big = theirs(vdev, ANNA, "big", 2 * MIB + PAGE)
        with pytest.raises(TtmError, match=r"2M of the 2M of vram .* needs 2052K more"):
            await move(vdev, big, "vram")
        assert [bo.mem_type for bo in (second, third)] == ["vram", "vram"]
        for bo in (first, second, third):
            await check(bo)
        assert not check_accounts(vdev)


async def test_others_go_only_where_the_limit_lets_one_have_the_space() -> None:
    async with device(user_limit="vram=2M", vram=4 * MIB) as vdev:
        owner = await make(vdev, "owner", 3 * MIB, place="vram")
        mine, more = theirs(vdev, ANNA, "a", MIB), theirs(vdev, ANNA, "b", 2 * MIB)
        await move(vdev, mine, "vram")
        await move(vdev, more, "vram")
        assert (mine.mem_type, more.mem_type, owner.mem_type) == ("gtt", "vram", "gtt")


async def test_who_has_no_memory_for_it_evicts_nothing_of_his() -> None:
    async with device(user_limit="memory=1M,vram=1M", vram=8 * MIB) as vdev:
        first, second, third = (theirs(vdev, ANNA, name, MIB) for name in "abc")
        await fill(first, MIB)
        await move(vdev, first, "vram")
        await idle(first)
        await fill(second, MIB)
        assert await outcome(lambda: move(vdev, second, "vram")) == errno.EDQUOT
        assert (first.mem_type, second.mem_type) == ("vram", "system")
        lifetime.release(second)
        await move(vdev, third, "vram")
        assert (first.mem_type, charged(vdev, ANNA)["memory"]) == ("gtt", 256)
        await check(first)


async def test_one_that_is_at_work_is_waited_for_and_not_refused() -> None:
    async with device(user_limit="vram=1M") as vdev, trio.open_nursery() as nursery:
        first, second = theirs(vdev, ANNA, "a"), theirs(vdev, ANNA, "b")
        for bo in (first, second):
            await fill(bo, MIB)
        await move(vdev, first, "vram")
        assert first.resv.trylock()
        nursery.start_soon(move, vdev, second, "vram")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert second.mem_type == "system"
        first.unlock()
        with trio.fail_after(5):
            while second.mem_type != "vram":
                await trio.sleep(0.001)
        assert first.mem_type == "gtt"
        await check(first)
        await check(second)


async def test_a_policy_names_only_what_may_go() -> None:
    async with device(user_limit="vram=2M", vram=8 * MIB) as vdev:
        await install(vdev, "fifo")
        bert = theirs(vdev, BERT, "bert", MIB)
        await move(vdev, bert, "vram")
        bos = [theirs(vdev, ANNA, name, MIB) for name in "abcd"]
        for bo in bos:
            await fill(bo, MIB)
            await move(vdev, bo, "vram")
        assert [bo.mem_type for bo in (bert, *bos)] == ["vram", "gtt", "gtt", "vram", "vram"]
        stats = vdev.policies.stats()["evict"]["vram"]
        assert (stats["taken"], stats["ejected"]) == (2, 0)
        assert not check_accounts(vdev)


async def test_first_touch_and_jobs_are_refused_where_their_placement_is() -> None:
    async with device(user_limit="vram=1M,memory=1M", placement="vram") as vdev:
        bo = theirs(vdev, ANNA, "a", 2 * MIB)
        assert await outcome(lambda: access.write(bo, 0, bytes(PAGE))) == errno.EDQUOT
        assert "vram" in bo.last_error
        job = Job("fill", dst=bo, value=7)
        assert await outcome(lambda: submit_job(vdev, job, OperationContext())) == errno.EDQUOT
        assert charged(vdev, ANNA) == {}
        bo.placement = vdev.parse_placement(["system"])
        assert await outcome(lambda: submit_job(vdev, job, OperationContext())) == errno.EDQUOT
        assert charged(vdev, ANNA) == {}


async def test_what_is_backed_up_was_paid_for_and_comes_back() -> None:
    async with device(user_limit="memory=1M") as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        await calls.backup_one(vdev, bo, BackupFlags(allow_move=True), OperationContext())
        assert charged(vdev, ANNA) == {"swap": 256}
        assert await outcome(lambda: access.write(bo, MIB, b"x")) == errno.EDQUOT
        await check(bo)
        assert charged(vdev, ANNA) == {"memory": 256}
        await calls.backup_one(vdev, bo, BackupFlags(allow_move=True), OperationContext())
        await calls.restore(vdev, bo, OperationContext())
        assert charged(vdev, ANNA) == {"memory": 256}
        lifetime.release(bo)
        assert charged(vdev, ANNA) == {}


async def test_an_eviction_for_others_is_never_refused_but_what_comes_after_it() -> None:
    async with device(user_limit="memory=1M,vram=4M") as vdev:
        mine = theirs(vdev, ANNA, "a")
        mine.placement = vdev.parse_placement(["vram"])
        mine.placed = False
        await fill(mine, 4 * MIB)
        await make(vdev, "owner", 4 * MIB, place="vram")
        assert mine.mem_type == "gtt"
        assert charged(vdev, ANNA) == {"gtt": 1024, "memory": 1024}
        await check(mine)
        new = theirs(vdev, ANNA, "b", PAGE)
        with pytest.raises(TtmError, match="4M of the 1M of memory that it may have, and gets nothing new") as caught:
            await move(vdev, new, "vram")
        assert caught.value.errno == errno.EDQUOT
        # Back home it takes less.
        await move(vdev, mine, "vram")
        await idle(mine)
        assert charged(vdev, ANNA) == {"vram": 1024}


async def test_a_ghost_is_paid_for_and_waited_for() -> None:
    async with device(user_limit="vram=1M", copy_latency=0.05) as vdev:
        bo, next_one = theirs(vdev, ANNA, "a"), theirs(vdev, ANNA, "b", MIB)
        await fill(bo, MIB)
        await move(vdev, bo, "vram")
        await idle(bo)
        await move(vdev, bo, "gtt")
        assert charged(vdev, ANNA)["vram"] == 256
        assert vdev.ttm.num_ghosts
        assert await outcome(lambda: move(vdev, next_one, "vram", no_wait_gpu=True)) == errno.EDQUOT
        await move(vdev, next_one, "vram")
        assert next_one.mem_type == "vram"
        await check(bo)


async def test_one_that_was_gutted_and_restored_has_its_pages() -> None:
    """No list has it: it has no resource."""
    async with device() as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        await calls.validate_bo(vdev, bo, (), OperationContext())
        await calls.restore(vdev, bo, OperationContext())
        await calls.backup_one(vdev, bo, BackupFlags(allow_move=True), OperationContext())
        assert bo.resource is None
        assert vdev.ttm.accounts.of(ANNA).charged == {"swap": 256}
        assert not check_accounts(vdev)


async def test_an_unfinished_restore_is_paid_for_once() -> None:
    async with device(user_limit="memory=1M") as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        await calls.backup_one(vdev, bo, BackupFlags(allow_move=True), OperationContext())
        fault = vdev.ttm.inject["store_read"]
        fault.probability, fault.times, fault.space = 100, 1, 3
        assert await outcome(lambda: calls.restore(vdev, bo, OperationContext())) == errno.EIO
        account = vdev.ttm.accounts.of(ANNA)
        assert account.in_flight > 0
        assert account.used("memory") == 256
        assert not check_accounts(vdev)
        account_of_bert = vdev.ttm.accounts.of(BERT)
        lifetime.set_account(bo, account_of_bert)
        assert (account.charged, account.in_flight) == ({}, 0)
        assert account_of_bert.used("memory") == 256
        await check(bo)
        assert charged(vdev, BERT) == {"memory": 256}


@pytest.mark.parametrize("place", ["vram", "gtt", "system"])
async def test_with_another_owner_all_of_it_is_his(place: str) -> None:
    async with device() as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        await move(vdev, bo, place)
        before = charged(vdev, ANNA)
        lifetime.set_account(bo, vdev.ttm.accounts.of(BERT))
        assert charged(vdev, ANNA) == ({} if vdev.ttm.num_ghosts == 0 else charged(vdev, ANNA))
        assert before.items() >= charged(vdev, BERT).items() > set()
        assert not check_accounts(vdev)
        lifetime.release(bo)
        with trio.fail_after(5):
            while charged(vdev, ANNA) or charged(vdev, BERT):
                await trio.sleep(0.001)


async def test_address_spaces_are_paid_for_and_fall_back_to_system() -> None:
    async with device(user_limit="memory=3M,vram=64K") as vdev, trio.open_nursery() as nursery:
        svm = Svm(vdev)
        nursery.start_soon(svm.run)
        space = svm.create("a", vdev.ttm.accounts.of(ANNA))
        space.set_size(8 * MIB)
        await svm_calls.gpu_fill(space, 0, 2 * MIB, 7)
        assert "vram" in space.last_error
        assert charged(vdev, ANNA) == {"memory": 512}
        assert await outcome(lambda: svm_calls.gpu_fill(space, 2 * MIB, 2 * MIB, 9)) == errno.EDQUOT
        assert await outcome(lambda: cpu.write(space, 4 * MIB, bytes(MIB + PAGE))) == errno.EDQUOT
        assert bytes(await cpu.read(space, 0, 4)) == b"\7" * 4
        assert not check_accounts(vdev)
        space.set_account(vdev.ttm.accounts.of(BERT))
        assert charged(vdev, ANNA) == {}
        assert not check_accounts(vdev)
        svm.close()
        with trio.fail_after(5):
            while charged(vdev, BERT):
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()


def _more_memory(bo: BufferObject) -> Any:
    bo.account.charge("memory", 1)


def _less_vram(bo: BufferObject) -> Any:
    bo.account.uncharge("vram", 1)


def _somebody_else(bo: BufferObject) -> Any:
    bo.device.accounts.of(BERT).charge("vram", 1)
    bo.account.uncharge("vram", 1)


def _store(bo: BufferObject) -> Any:
    bo.account.charge("swap", 1)


@pytest.mark.parametrize("harm", [_more_memory, _less_vram, _somebody_else, _store])
async def test_selfcheck_finds_what_does_not_add_up(harm: Any) -> None:
    async with device() as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        await move(vdev, bo, "vram")
        await idle(bo)
        before = vdev.ttm.accounts.of(ANNA).charged.copy()
        assert vdev.selfcheck() == []
        harm(bo)
        assert any(sentence.startswith("accounts: ") for sentence in vdev.selfcheck())
        for account in (*vdev.ttm.accounts.users(), vdev.ttm.accounts.root):
            account.charged = before.copy() if account.name != f"user {BERT}" else {}


async def test_limits_may_change_and_take_nothing_away() -> None:
    async with device() as vdev:
        bo = theirs(vdev, ANNA, "a")
        await fill(bo, MIB)
        set_user_limit(vdev, "memory=4K")
        await check(bo)
        assert await outcome(lambda: access.write(bo, MIB, b"x")) == errno.EDQUOT
        vdev.ttm.accounts.exempt |= {BERT}
        await fill(theirs(vdev, BERT, "b"), MIB)
        set_user_limit(vdev, "")
        await access.write(bo, MIB, b"x")


SIZES = {"memory": 64 * MIB, "vram": 4 * MIB, "gtt": 16 * MIB}


def test_limits_are_sizes_and_parts() -> None:
    limits = parse_user_limit("memory=50%, vram=1M,bos=10000", SIZES)
    assert limits == {"memory": 8192, "vram": 256, "bos": 10000}
    assert format_user_limit(limits) == "memory=32M,vram=1M,bos=10000"
    assert parse_user_limit(format_user_limit(limits), SIZES) == limits
    assert parse_user_limit("", SIZES) == {}
    assert parse_user_limit("vram=0%", SIZES) == {"vram": 0}


@pytest.mark.parametrize(
    "text",
    ["disk=1M", "vram", "vram=", "vram=-1%", "vram=101%", "vram=nan%", "bos=1M", "bos=-1", "vram=1M,vram=2M", "=1"],
)
def test_what_is_no_limit_is_einval_and_named(text: str) -> None:
    with pytest.raises(TtmError, match="user limit") as caught:
        parse_user_limit(text, SIZES)
    assert caught.value.errno == errno.EINVAL
