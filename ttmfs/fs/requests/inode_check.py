"""Check of inodes and opens, for selfcheck: what the kernel was told of is there, and counts are those of handles."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ttmfs.driver.entries import File
from ttmfs.fs.requests.inodes import Inodes


def check_inodes(inodes: Inodes, files: Iterable[File]) -> Iterator[str]:
    """The table itself, and that those of `files` that say so are in it."""
    yield from inodes.check()
    for file in files:
        if file.known and not inodes.knows(file):
            yield f"inode {file.ino} ({file.path}) counts as known to the kernel, and is not in the table"


def check_opens(files: Iterable[File], handles: Iterable[tuple[File, bool]]) -> Iterator[str]:
    """`handles` are (file, may write) of every open file."""
    opens: Counter[File] = Counter()
    writes: Counter[File] = Counter()
    for file, may_write in handles:
        opens[file] += 1
        writes[file] += may_write
    for file in {**dict.fromkeys(files), **dict.fromkeys(opens)}:
        if (file.opens, file.write_opens) != (opens[file], writes[file]):
            yield (
                f"inode {file.ino} ({file.path}) counts {file.opens} opens, {file.write_opens} of them for writing; "
                f"there are {opens[file]} and {writes[file]}"
            )
