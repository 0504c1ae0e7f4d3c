"""A BO that is not there: who asks is told which one may be meant, and nothing of a folder that hides its names."""

import pytest

from tests.core.harness import device
from ttmfs.driver.namespace import Namespace
from ttmfs.errors import TtmError


async def test_a_name_that_is_near_is_proposed() -> None:
    async with device() as vdev:
        names = Namespace(vdev, uid=0, gid=0)

        def said(name: str) -> str:
            with pytest.raises(TtmError) as failed:
                names.find(name)
            return failed.value.message

        assert said("tex1") == "there is no BO 'tex1': see `ls objects`"
        names.create(names.root, b"tex0", 0o644, 0, 0)
        assert said("tex1") == "there is no BO 'tex1': did you mean 'tex0'?"
        assert said("colours") == "there is no BO 'colours': see `ls objects`"
        for mode, proposed in ((0o755, "did you mean 'walls/brick'?"), (0o711, "see `ls objects`")):
            folder = names.mkdir(names.root, b"walls", mode, 0, 0)
            file = names.create(folder, b"brick", 0o644, 0, 0)
            assert said("walls/brik") == f"there is no BO 'walls/brik': {proposed}"
            assert said("walls/brick/x") == "there is no BO 'walls/brick/x': see `ls objects`"
            names.unlink(folder, b"brick")
            names.rmdir(names.root, b"walls")
            assert file.unlinked
