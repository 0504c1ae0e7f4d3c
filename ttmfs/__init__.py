"""ttmfs: the Linux kernel's TTM (Translation Table Manager) in user space, mounted as a file system."""

__version__ = "0.1.0"
