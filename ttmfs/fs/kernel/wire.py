"""Wire: how requests and replies look on /dev/fuse, as far as ttmfs reads and writes them itself (linux/fuse.h)."""

import struct
from typing import Final

IN_HEADER: Final = struct.Struct("=IIQQIIII")
"""len, opcode, unique, nodeid, uid, gid, pid, padding (fuse_in_header)."""
DATA_REQUEST: Final = struct.Struct("=IIQQIIIIQQI20x")
"""The header; fh, offset, size, flags of a READ or WRITE (fuse_read_in, fuse_write_in). The bytes of a WRITE follow."""
OUT_HEADER: Final = struct.Struct("=IiQ")
"""len, error (negative errno), unique (fuse_out_header)."""
WRITE_REPLY: Final = struct.Struct("=IiQII")
"""The header; size, padding (fuse_write_out)."""
INIT_IN: Final = struct.Struct("=IIII")
"""major, minor, max_readahead, flags (fuse_init_in); more follows."""
INIT_OUT: Final = struct.Struct("=IIIIHHI")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write (fuse_init_out); more follows."""

FORGET: Final = 2
READ: Final = 15
WRITE: Final = 16
INIT: Final = 26
BATCH_FORGET: Final = 42

WITH_HANDLER: Final = frozenset({
    1, FORGET, 3, 4, 5, 6,  # LOOKUP, GETATTR, SETATTR, READLINK, SYMLINK
    8, 9, 10, 11, 12, 13, 14,  # MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN
    READ, WRITE, 17, 18, 20,  # STATFS, RELEASE, FSYNC
    21, 22, 23, 24, 25,  # SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH
    27, 29, 30, 34, 35,  # OPENDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE
    40, BATCH_FORGET, 44, 45,  # POLL, READDIRPLUS, RENAME2
})  # fmt: skip
"""What pyfuse3 has a handler for. Anything else libfuse answers by itself, with ENOSYS."""
