"""What a BO does not cost: nothing that it does not need is made for it, and what is not made says the same."""

import random

import numpy as np
import pytest

from tests.core.harness import MIB, PAGE, device, idle, make, move, pattern
from ttmfs.driver.entries import Dentry
from ttmfs.driver.namespace import Namespace
from ttmfs.ttm import access
from ttmfs.ttm.lifetime import release, set_size
from ttmfs.ttm.managers import BuddyManager
from ttmfs.ttm.resource import Resource


async def test_pages_of_vram_in_one_run_have_no_array_of_their_numbers() -> None:
    async with device() as vdev:
        bo = await make(vdev, "a", 2 * MIB, place="vram")
        await idle(bo)
        resource = bo.resource
        assert resource is not None
        assert resource.scattered is None
        assert resource.pages is not None
        assert resource.pages.tolist() == list(range(resource.start, resource.start + 512))
        assert resource.pages.dtype == np.uint32
        assert bytes(await access.read(bo, 0, bo.size)) == pattern("a", bo.size)
        set_size(bo, MIB + 1)
        assert resource.numbers(250, 99).tolist() == list(range(resource.start + 250, resource.start + 257))


@pytest.mark.parametrize("scattered", [False, True])
async def test_a_run_and_single_pages_are_asked_the_same(scattered: bool) -> None:
    rng = random.Random(scattered)
    async with device(vram=64 * PAGE) as vdev:
        manager = vdev.ttm.managers["vram"]
        assert isinstance(manager, BuddyManager)
        filler = [await make(vdev, f"f{number}", PAGE, place="vram") for number in range(64)]
        await idle(*filler)
        filler.sort(key=lambda bo: bo.resource.start if bo.resource else 0)
        for bo in rng.sample(filler, 20) if scattered else filler[16:48]:
            release(bo)
        bo = await make(vdev, "a", 16 * PAGE, place="vram")
        await idle(bo)
        resource = bo.resource
        assert isinstance(resource, Resource)
        assert (resource.start < 0) == scattered == (resource.scattered is not None)
        assert resource.pages is not None
        pages = resource.pages.tolist()
        assert len(set(pages)) == 16
        for _ in range(200):
            index = rng.randrange(16)
            count = rng.randint(1, 16 - index)
            first, end = sorted(rng.sample(range(70), 2))
            assert resource.numbers(index, count).tolist() == pages[index : index + count]
            page, length = resource.extent(index, count)
            run = [pages[index] + step for step in range(length)]
            assert (page, run) == (pages[index], pages[index : index + length])
            assert length == count or pages[index + length] != pages[index] + length
            assert resource.pages_between(first, end) == sum(first <= number < end for number in pages)
        manager.visible_pages = max(pages) + 1
        assert manager.visible(resource)
        manager.visible_pages = max(pages)
        assert not manager.visible(resource)
        manager.visible_pages = 64


async def test_a_gate_is_made_for_a_bo_that_a_client_touches() -> None:
    async with device() as vdev:
        bo = vdev.create_bo("a")
        set_size(bo, MIB)
        for place in ("vram", "gtt", "vram", "system"):
            await move(vdev, bo, place)
        await idle(bo)
        assert (bo._gate, bo.unmapping, bo.state) == (None, False, "resident")
        await access.write(bo, 0, b"x")
        assert bo._gate is bo.gate
        bo.gate.begin_unmapping()
        assert (bo.unmapping, bo.state) == (True, "unmapping")
        bo.gate.end_unmapping()
        assert (bo.unmapping, bo.state) == (False, "resident")


async def test_files_share_their_mode_and_bos_what_says_how_they_moved() -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)
        files = [names.create(names.root, name, 0o640, 0, 0) for name in (b"a", b"b")]
        for file in files:
            set_size(file.bo, PAGE)
            await move(vdev, file.bo, "vram")
            await idle(file.bo)
        first, second = files
        assert first.mode is second.mode
        assert first.bo.last_move is not None
        assert first.bo.last_move is second.bo.last_move
        assert 0 < first.bo.moved_at <= second.bo.moved_at
        names.link(first, names.root, b"c")
        names.rename(names.root, b"a", names.root, b"d", replace=False)
        assert [name.name for name in first.names] == [b"d", b"c"]
        assert all(isinstance(name, Dentry) for name in first.names)
        for name in (b"d", b"c", b"b"):
            names.unlink(names.root, name)
        assert (first.names, second.names) == ((), ())
