"""regions/*/lru: every BO has its line, however many there are, and others run while it is made."""

import trio

from tests.core.harness import MIB, PAGE, device, lru_names, make
from tests.turns import Turns, ticking_clock
from ttmfs.fs.tree.region_texts import lru_text

BOS = 3000


def names_of(text: bytes) -> list[str]:
    head, *rows = text.decode().splitlines()
    assert head == "priority\tbo\tbytes"
    return [row.split("\t")[1] for row in rows]


async def test_all_are_listed_in_the_order_in_which_they_go_and_others_run_meanwhile() -> None:
    async with device(vram=16 * MIB) as vdev:
        for number in range(BOS):
            await make(vdev, f"bo{number}", PAGE, place="vram")
        manager = vdev.ttm.managers["vram"]
        with ticking_clock(us=20), Turns() as turns:
            text = await lru_text(manager)
        assert names_of(text) == lru_names(vdev, "vram")
        assert text.splitlines()[1] == b"1\tbo0\t4096"
        assert turns.count >= BOS // 100


async def test_those_who_are_used_meanwhile_have_one_line_each_and_do_not_make_it_endless() -> None:
    async with device(vram=16 * MIB) as vdev:
        bos = [await make(vdev, f"bo{number}", PAGE, place="vram") for number in range(300)]
        manager = vdev.ttm.managers["vram"]
        used = 0

        async def uses_all_the_time() -> None:
            nonlocal used
            while True:
                await trio.lowlevel.checkpoint()
                for bo in bos[::2]:
                    assert bo.resource is not None
                    manager.lru_bump(bo.resource)
                used += 1

        with ticking_clock(us=20), trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(uses_all_the_time)
                text = await lru_text(manager)
                nursery.cancel_scope.cancel()
        assert used, "else it proves nothing"
        assert sorted(names_of(text)) == sorted(bo.name for bo in bos)
        assert names_of(text)[:100] == [bo.name for bo in bos[1:200:2]], "they are not used, and go first"
