"""The part of selfcheck that knows inodes and open files: what is planted is named."""

from ttmfs.driver.entries import File
from ttmfs.fs.kernel.rights import Owner
from ttmfs.fs.requests.inode_check import check_inodes, check_opens
from ttmfs.fs.requests.inodes import Inodes
from ttmfs.fs.tree.listing import FixedNames
from ttmfs.fs.tree.nodes import VirtualDir


def test_inodes_and_opens_are_counted() -> None:
    root = VirtualDir("", lambda _name: None, FixedNames(()), Owner(0, 0).public(0o555))
    inodes = Inodes(root)
    file, other = File(1 << 20, 0o100644, 0, 0), File((1 << 20) + 1, 0o100644, 0, 0)
    inodes.looked_up(file.ino, file)
    file.opens, file.write_opens = 2, 1
    handles = [(file, True), (file, False)]
    assert [*check_inodes(inodes, [file, other]), *check_opens([file, other], handles)] == []
    other.known = True
    file.known = False
    assert len(list(check_inodes(inodes, [file, other]))) == 2
    assert len(list(check_opens([file, other], [*handles, (other, False)]))) == 1
    assert len(list(check_opens([file, other], handles[:1]))) == 1
