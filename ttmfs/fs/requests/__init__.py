"""The FUSE requests: inodes, open files, names, READ and WRITE."""
